"""Where a token stands at each place: as stored of tracked tokens and of the final prediction, else among the k best."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raylens.storage.plots.canvas import Array
from raylens.storage.plots.request import prediction
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
    logprobs, ranks = _stored(record, lens, targets, "logprob"), _stored(record, lens, targets, "rank")
    return (
        np.where(np.isnan(logprobs), np.where(known, best, np.nan), logprobs),
        np.where(np.isnan(ranks), np.where(known, places + 1.0, np.nan), ranks),
    )


def known_everywhere(record: Record, lens: TapLens, targets: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """[P] whether a token's rank in the whole vocabulary is stored at every layer, whatever it is; as of ``standing``."""
    return np.asarray(np.isfinite(_stored(record, lens, targets, "rank")).all(axis=0))


def models_own(record: Record) -> NDArray[np.bool_]:
    """[P] whether the prediction of the last stored layer is known to be what the model's own last layer puts first, of which
    the statistics named ``best`` are."""
    final = prediction(record)
    last = record.taps[final.tap]
    firsts = last.stats.get("best_rank")
    if firsts is None:
        return np.zeros(len(record.positions), dtype=np.bool_)
    return np.asarray(firsts[last.layers.index(final.layer)] == 1)


def _stored(record: Record, lens: TapLens, targets: NDArray[np.uint32], what: Literal["rank", "logprob"]) -> Array:
    """[L, P] what the tap's statistics say of the tokens; not a number where they are of other ones."""
    values = np.full(lens.ids.shape[:2], np.nan)
    if f"best_{what}" in lens.stats:
        columns = np.flatnonzero((targets == prediction(record).ids) & models_own(record))
        values[:, columns] = lens.stats[f"best_{what}"][:, columns]
    if f"tracked_{what}" in lens.stats:
        for number, token in enumerate(record.tracked):
            columns = np.flatnonzero(targets == token)
            values[:, columns] = lens.stats[f"tracked_{what}"][:, columns, number]
    return values


def ranks(record: Record, lens: TapLens, targets: NDArray[np.uint32]) -> Array:
    """As ``standing``; k + 1 where a rank is not known."""
    _, found = standing(record, lens, targets)
    return np.where(np.isnan(found), lens.ids.shape[2] + 1.0, found)
