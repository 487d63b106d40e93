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

#: exp below this is a subnormal number in float32; it counts as 0.
_SMALLEST = np.float32(-87.0)
# exp(y) = 2**n * exp(y - n ln 2) with the polynomial of Cephes' expf; ln 2 in two parts, so that the difference is exact
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
#: Adding it rounds a float32 to a whole number, which then stands in the lowest bits; unlike a conversion it lets NaN pass.
_ROUND = np.float32(12582912.0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
_SIGN_SHIFT, _ALL_BUT_SIGN = np.int32(31), np.int32(0x7FFFFFFF)
_LEAST = np.int32(-0x80000000)


@compiled(FUSED)
def exp(y: Any) -> Any:
    """exp of a float32 at most 0, within 2e-7 of its value; 0 below -87, NaN of NaN.

    Own code, because numba's is a library call for each number, which keeps the loops around it from being vectorised.
    """
    shifted = y * _LOG2_E + _ROUND
    n = shifted - _ROUND
    f = y - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * f + _P1) * f + _P2) * f + _P3) * f + _P4) * f + _P5
    p = p * (f * f) + f + ONE
    bits = np.int32(np.int32(np.float32(shifted).view(np.int32)) + _BIAS)
    power = np.int32(bits << _MANTISSA).view(np.float32)
    return ZERO if y < _SMALLEST else p * power


@compiled()
def _largest(row: Floats) -> Any:
    """The largest of [B] logits; NaN counts as more than infinity.

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
        below = row[i] - maximum
        weight = exp(below)
        total += weight
        weighted += weight * (_SMALLEST if below < _SMALLEST else below)  # 0 times infinity is not 0
    return total, weighted


@compiled()
def _any_above(row: Floats, threshold: Any) -> bool:
    count = np.int32(0)
    for i in range(row.shape[0]):
        count += np.int32(row[i] > threshold)
    return bool(count > 0)


@compiled()
def _insert(values: Floats, ids: Ids, filled: int, value: Any, token: int) -> None:
    """Put a value behind all that are as large; they have lower ids."""
    place = min(filled, values.shape[0] - 1)
    while place > 0 and value > values[place - 1]:
        values[place], ids[place] = values[place - 1], ids[place - 1]
        place -= 1
    values[place], ids[place] = value, token


@compiled()
def _keep_best(row: Floats, first: int, values: Floats, ids: Ids) -> None:
    k = values.shape[0]
    filled = min(first, k)
    for start in range(0, row.shape[0], _STRETCH):
        stretch = row[start : start + _STRETCH]
        if filled == k and not _any_above(stretch, values[k - 1]):
            continue
        for i in range(stretch.shape[0]):
            if filled < k or stretch[i] > values[k - 1]:
                _insert(values, ids, filled, stretch[i], first + start + i)
                filled = min(filled + 1, k)


@compiled()
def take_row(row: Floats, first: int, statistics: Doubles, values: Floats, ids: Ids) -> None:
    """Take [B] logits of tokens ``first`` and up into the state of their row."""
    largest = _largest(row)
    if largest > statistics[0] or np.isnan(largest):
        fall = statistics[0] - np.float64(largest)
        scale = math.exp(fall)
        statistics[2] = scale * (statistics[2] + fall * statistics[1])
        statistics[1] *= scale
        statistics[0] = largest
    total, weighted = _sums(row, np.float32(statistics[0]))
    statistics[1] += total
    statistics[2] += weighted
    if first < values.shape[0] or largest > values[-1]:
        _keep_best(row, first, values, ids)


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
        weights: [T, B] probabilities of the final layer, or [1, 0].
        targets, target_logits, above: [N, M] what is counted (asked.py).
        token: [N] row of ``weights``.
        cross: [N] sums of logits times weights.
    """
    for n in range(logits.shape[0]):
        for start in range(0, logits.shape[1], PIECE):
            row = logits[n, start : start + PIECE]
            take_row(row, first + start, statistics[n], values[n], ids[n])
            count_above(row, first + start, targets[n], target_logits[n], above[n])
            cross[n] += weighted_sum(row, weights[token[n], start : start + PIECE])
