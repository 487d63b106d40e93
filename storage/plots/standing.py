"""Where a token stands at each place: as tracked, else as far as it is among the k best."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylens.storage.plots.canvas import Array
from raylens.storage.record import Record, TapLens


def standing(record: Record, lens: TapLens, targets: NDArray[np.uint32]) -> tuple[Array, Array]:
    """[L, P] logprobs and [L, P] ranks, from 1, of one token a position; not a number where the record does not know it.

    Args:
        lens: of a tap of the record.
        targets: [P] token ids.
    """
    found = lens.ids == targets[None, :, None]
    known, places = found.any(axis=2), found.argmax(axis=2)
    best = np.take_along_axis(lens.logprobs, places[:, :, None], axis=2)[:, :, 0].astype(np.float64)
    logprobs = _exact(record, lens, targets, "tracked_logprob", np.where(known, best, np.nan))
    return logprobs, _exact(record, lens, targets, "tracked_rank", np.where(known, places + 1.0, np.nan))


def _exact(record: Record, lens: TapLens, targets: NDArray[np.uint32], stat: str, values: Array) -> Array:
    """The values, with those of tracked tokens in place."""
    tracked: NDArray[Any] | None = lens.stats.get(stat)
    for number, token in enumerate(record.tracked if tracked is not None else []):
        columns = np.flatnonzero(targets == token)
        values[:, columns] = tracked[:, columns, number]  # type: ignore[index]
    return values


def ranks(record: Record, lens: TapLens, targets: NDArray[np.uint32]) -> Array:
    """As ``standing``; k + 1 where a token is not among the k best and not tracked."""
    _, found = standing(record, lens, targets)
    return np.where(np.isnan(found), lens.ids.shape[2] + 1.0, found)
