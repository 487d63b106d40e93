"""From the products of what a residual is made of with a block of the unembedding to the lens of every part and every sum.

Shapes: C parts of the sum, T tokens of a tile, B entries of a block, S read-outs, K tokens kept.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylens.workers.kernels.asked import count_above, weighted_sum
from raylens.workers.kernels.compiled import compiled
from raylens.workers.kernels.epilogue import exp, take_row
from raylens.workers.kernels.floats import ONE, PIECE, ZERO, Doubles, Floats, Ids

_MINUS_TWO = np.float32(-2.0)


@compiled()
def _add(running: Floats, product: Floats) -> None:
    for i in range(running.shape[0]):
        running[i] += product[i]


@compiled()
def _logits(product: Floats, scale: Any, constant: Floats, factor: Any, cap: Any, out: Floats) -> None:
    """What the norm's scale, the constant part of the logits, and the step after the head make of products."""
    for i in range(out.shape[0]):
        out[i] = (product[i] * scale + constant[i]) * factor
    if cap > ZERO:
        for i in range(out.shape[0]):
            # tanh |x| = (1 - e^-2|x|) / (1 + e^-2|x|), which our exp lets the compiler vectorise
            small = exp(_MINUS_TWO * abs(out[i] / cap))
            size = cap * ((ONE - small) / (ONE + small))
            out[i] = size if out[i] >= ZERO else -size


@compiled()
def walk_block(
    products: Floats,
    constant: Floats,
    first: int,
    scales: NDArray[np.float32],
    slots: NDArray[np.int64],
    factor: Any,
    cap: Any,
    asked: NDArray[np.bool_],
    weights: Floats,
    statistics: Doubles,
    values: Floats,
    ids: Ids,
    targets: Ids,
    target_logits: Floats,
    above: Ids,
    cross: Doubles,
) -> None:
    """Take one block of the vocabulary.

    Args:
        products: [C, T, B] of each part, centred and weighted by the norm's gain, with the block; unscaled.
        constant: [B] the head's product with the norm's bias, plus the head's bias.
        first: token of the first entry.
        scales: [2, C, T] the norm's factor for each part itself, and for the sum up to it.
        slots: [2, C] where the read-out of either goes, from 0 to S-1; negative where it is not wanted.
        factor, cap: float32, the step after the head; a cap of 0 is none.
        asked: [S] of which read-outs more is asked (asked.py) than their best tokens.
        weights: [T, B] probabilities of the final layer, or [0, 0].
        statistics, values, ids: [S, T, 3], [S, T, K], [S, T, K], the states (epilogue.py).
        targets, target_logits, above: [S, T, M] what is counted (asked.py).
        cross: [S, T] sums of logits times weights.
    """
    parts, tokens, width = products.shape
    read_outs = statistics.shape[0] * tokens  # each is row s * tokens + t of the states
    rows, k = statistics.reshape(read_outs, 3), values.shape[2]
    best, best_ids = values.reshape(read_outs, k), ids.reshape(read_outs, k)
    memory, logits_memory = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    for t in range(tokens):
        for start in range(0, width, PIECE):
            stop = min(start + PIECE, width)
            running, logits, added = memory[: stop - start], logits_memory[: stop - start], constant[start:stop]
            running[:] = ZERO
            for c in range(parts):
                product = products[c, t, start:stop]
                _add(running, product)
                for which in range(2):
                    s = slots[which, c]
                    if s >= 0:
                        source = product if which == 0 else running
                        _logits(source, scales[which, c, t], added, factor, cap, logits)
                        take_row(logits, first + start, rows, best, best_ids, s * tokens + t)
                        if asked[s]:
                            count_above(logits, first + start, targets[s, t], target_logits[s, t], above[s, t])
                            if weights.shape[1] > 0:
                                cross[s, t] += weighted_sum(logits, weights[t, start:stop])
