"""What is asked of a row beyond its best tokens (workers/asked.py), over a stretch of logits that is in the cache."""

from typing import Any

import numpy as np

from raylens.workers.kernels.compiled import compiled
from raylens.workers.kernels.floats import ANY_ORDER, ZERO, Floats, Ids


@compiled()
def count_above(row: Floats, first: int, targets: Ids, values: Floats, above: Ids) -> None:
    """Count, for each of [M] targets, the [B] logits of tokens ``first`` and up that come before its own.

    Before an equal logit comes the lower id. A target's own logit, which another product may have rounded otherwise, does not
    count.
    """
    width = row.shape[0]
    for m in range(targets.shape[0]):
        value, place = values[m], targets[m] - first
        edge = min(max(place, 0), width)
        count = np.int32(0)
        for i in range(edge):
            count += np.int32(row[i] >= value)
        for i in range(edge, width):
            count += np.int32(row[i] > value)
        if 0 <= place < width and row[place] > value:
            count -= np.int32(1)
        above[m] += count


@compiled(ANY_ORDER)
def weighted_sum(row: Floats, weights: Floats) -> Any:
    """The sum of [B] logits times their weights; what has no weight adds nothing, also where the logit is minus infinity."""
    total = ZERO
    for i in range(weights.shape[0]):
        total += row[i] * weights[i] if weights[i] > ZERO else ZERO
    return total
