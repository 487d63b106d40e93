"""Whether a disturbed run came to what an undisturbed one does."""

from collections import Counter

import numpy as np

from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.record import Record

#: What float32 logprobs of a prompt differ by between batches of different shapes.
TOLERANCE = 1e-4


def times_entered(folder: RunFolder) -> Counter[int]:
    """How many times the ledger names each prompt."""
    return Counter(entry.index for commit in Ledger(folder).follow() for entry in commit.entries)


def same_results(record: Record, twin: Record) -> bool:
    """The same results, up to what the float32 model itself differs by between batch shapes."""
    if (record.text, record.token_ids, record.positions, record.layers) != (
        twin.text, twin.token_ids, twin.positions, twin.layers,
    ):  # fmt: skip
        return False
    return record.taps.keys() == twin.taps.keys() and all(
        _same_tap(lens.ids, lens.logprobs, twin.taps[tap].ids, twin.taps[tap].logprobs) for tap, lens in record.taps.items()
    )


def _same_tap(ids: np.ndarray, logprobs: np.ndarray, twin_ids: np.ndarray, twin_logprobs: np.ndarray) -> bool:
    if not np.allclose(logprobs, twin_logprobs, rtol=0, atol=TOLERANCE):
        return False
    gap = np.diff(logprobs, axis=-1) > -TOLERANCE  # neighbours so close may swap
    close = np.concatenate([gap, gap[..., :1]], -1) | np.concatenate([gap[..., :1], gap], -1)
    close[..., -1] = True  # the last place may go to a neighbour that is not stored
    return bool(((ids == twin_ids) | close).all())
