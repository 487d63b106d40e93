"""One pass over a block of float32 logits: running maximum, sums of a softmax, and top-k by threshold insertion.

The method is online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867), with a top-k kept by threshold: once k values are
held, nearly every stretch of logits is passed over by one vectorised comparison with the k-th best.

State of a row: statistics [3] float64 (maximum; sum of exp(logit - maximum); sum of (logit - maximum) times that), values
[K] float32 and ids [K] int64, best first, of which the first ``min(first, K)`` are filled.
"""

import math
from typing import Any

import numpy as np

from raylens.workers.kernels.asked import count_above, weighted_sum
from raylens.workers.kernels.compiled import compiled
from raylens.workers.kernels.floats import ANY_ORDER, FUSED, ONE, PIECE, ZERO, Doubles, Floats, Ids

#: Logits passed over by one comparison.
_STRETCH = 64

#: exp of this or less is 0: n below is -127 then, and the bits of 2**n are those of 0.
_SMALLEST = np.float32(-88.0)
# exp(y) = 2**n * exp(f), where f = y - n ln 2 and n is a whole number; the polynomial is the one of degree 5, 1 at 0, that is
# nearest to exp(f) relative to it, 9e-8 off, for |f| <= ln 2 / 2
_LOG2_E, _LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_P1, _P2, _P3 = np.float32(0.9999997062974008), np.float32(0.4999914781032279), np.float32(0.1666763816232427)
_P4, _P5 = np.float32(0.04189816381584903), np.float32(0.008290271349497093)
#: Adding it rounds a float32 to a whole number, which then stands in the lowest bits; unlike a conversion it lets NaN pass.
_ROUND = np.float32(12582912.0)
_MANTISSA = np.int32(23)
_SIGN_SHIFT, _ALL_BUT_SIGN = np.int32(31), np.int32(0x7FFFFFFF)
_LEAST = np.int32(-0x80000000)


@compiled()
def _not_too_small(y: Any) -> Any:
    return _SMALLEST if y < _SMALLEST else y  # lets NaN pass


@compiled(FUSED)
def _power(y: Any) -> Any:
    """exp of a float32 from -88 to 0."""
    shifted = y * _LOG2_E + _ROUND
    f = y - (shifted - _ROUND) * _LN2
    p = ((((_P5 * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + ONE
    scale = np.int32((np.float32(shifted).view(np.int32) << _MANTISSA) + np.float32(ONE).view(np.int32))
    return p * scale.view(np.float32)


@compiled()
def exp(y: Any) -> Any:
    """exp of a float32 at most 0, within 4e-7 of its value, 2e-7 from -20 up; 0 below -87.7, NaN of NaN.

    Own code, because numba's is a library call for each number, which keeps the loops around it from being vectorised.
    """
    return _power(_not_too_small(y))


@compiled()
def _largest(row: Floats) -> Any:
    """The largest of [B] logits; NaN counts as more than infinity, or with its sign set as less than all: sums carry it on.

    As whole numbers, which order as floats do once negative ones are turned around, and whose maximum is vectorised.
    """
    most = _LEAST
    for i in range(row.shape[0]):
        bits = np.float32(row[i]).view(np.int32)
        most = max(most, np.int32(bits ^ ((bits >> _SIGN_SHIFT) & _ALL_BUT_SIGN)))
    return np.int32(most ^ ((most >> _SIGN_SHIFT) & _ALL_BUT_SIGN)).view(np.float32)


@compiled(ANY_ORDER)
def _sums(row: Floats, maximum: Any) -> Any:
    """The sums of exp(logit - maximum) and of (logit - maximum) times that."""
    total, weighted = ZERO, ZERO
    for i in range(row.shape[0]):
        below = _not_too_small(row[i] - maximum)  # also because 0 times infinity is not 0
        weight = _power(below)
        total += weight
        weighted += weight * below
    return total, weighted


@compiled()
def _any_above(row: Floats, start: int, stop: int, threshold: Any) -> bool:
    count = np.int32(0)
    for i in range(start, stop):
        count += np.int32(row[i] > threshold)
    return bool(count > 0)


@compiled()
def _insert(values: Floats, ids: Ids, n: int, filled: int, value: Any, token: int) -> None:
    """Put a value behind all that are as large; they have lower ids."""
    place = min(filled, values.shape[1] - 1)
    while place > 0 and value > values[n, place - 1]:
        values[n, place], ids[n, place] = values[n, place - 1], ids[n, place - 1]
        place -= 1
    values[n, place], ids[n, place] = value, token


@compiled()
def _keep_best(row: Floats, first: int, values: Floats, ids: Ids, n: int) -> None:
    k = values.shape[1]
    filled = min(first, k)
    for start in range(0, row.shape[0], _STRETCH):
        stop = min(start + _STRETCH, row.shape[0])
        if filled == k and not _any_above(row, start, stop, values[n, k - 1]):
            continue
        for i in range(start, stop):
            if filled < k or row[i] > values[n, k - 1]:
                _insert(values, ids, n, filled, row[i], first + i)
                filled = min(filled + 1, k)


@compiled()
def take_row(row: Floats, first: int, statistics: Doubles, values: Floats, ids: Ids, n: int) -> None:
    """Take [B] logits of tokens ``first`` and up into the state of row n.

    The states come whole, with a number: to cut a row out of each costs as much as reading hundreds of logits.
    """
    largest = _largest(row)
    if largest > statistics[n, 0] or np.isnan(largest):
        fall = statistics[n, 0] - np.float64(largest)
        scale = math.exp(fall)
        statistics[n, 2] = scale * (statistics[n, 2] + fall * statistics[n, 1])
        statistics[n, 1] *= scale
        statistics[n, 0] = largest
    total, weighted = _sums(row, np.float32(statistics[n, 0]))
    statistics[n, 1] += total
    statistics[n, 2] += weighted
    if first < values.shape[1] or largest > values[n, -1]:
        _keep_best(row, first, values, ids, n)


@compiled()
def take_block(
    logits: Floats,
    first: int,
    statistics: Doubles,
    values: Floats,
    ids: Ids,
    weights: Floats,
    targets: Ids,
    target_logits: Floats,
    above: Ids,
    token: Ids,
    cross: Doubles,
) -> None:
    """Take the next block of N rows.

    Args:
        logits: [N, B] contiguous.
        first: token of the first column.
        statistics, values, ids: [N, 3], [N, K], [N, K] the states.
        weights: [T, B] probabilities of the final layer, or [0, 0].
        targets, target_logits, above: [N, M] what is counted (asked.py).
        token: [N] row of ``weights``.
        cross: [N] sums of logits times weights.
    """
    for n in range(logits.shape[0]):
        for start in range(0, logits.shape[1], PIECE):
            row = logits[n, start : start + PIECE]
            take_row(row, first + start, statistics, values, ids, n)
            count_above(row, first + start, targets[n], target_logits[n], above[n])
            if weights.shape[1] > 0:
                cross[n] += weighted_sum(row, weights[token[n], start : start + PIECE])
