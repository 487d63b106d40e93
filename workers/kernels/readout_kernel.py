"""The device half of the Triton read-out: one program reads a tile of rows against its part of the vocabulary.

Names of sizes: n rows of a tile, v columns (tokens) of a tile, d width of a step of the product, slots of a list of the best.

A token and its logit are one int64 *key*: the logit's bits, made to order as integers do, above the complement of the id. So
the larger key is the larger logit or, of equal ones, the lower id; keys are unique, and all ties are settled by comparing them.
"""

import triton
import triton.language as tl

#: Kinds of step after the head, as ``after_head`` names them.
NOTHING = tl.constexpr(0)
SOFTCAP = tl.constexpr(1)
SCALE = tl.constexpr(2)

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32; minus infinity less itself is not a number
_NEVER = tl.constexpr(-1e4)  # exp of it is 0 in float32
_INT_MIN = tl.constexpr(-(1 << 31))  # no logit's bits order as low: it marks what is not there
_INT_MAX = tl.constexpr((1 << 31) - 1)
_KEY_MIN = tl.constexpr(-(1 << 63))
_KEY_MAX = tl.constexpr((1 << 63) - 1)
_NAN = tl.constexpr(0x7FC00000)
_LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _tanh(x):
    """tanh of float32, to about 4e-7 of its value: a series near 0, where the exponential form cancels."""
    size = tl.abs(x)
    square = x * x
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    far = 1 - 2 / (tl.exp(2 * size) + 1)
    return tl.where(size < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def _product(first, second, weight, row, token, width: tl.constexpr, two: tl.constexpr, upcast: tl.constexpr,
             block_n: tl.constexpr, block_v: tl.constexpr, block_d: tl.constexpr):  # fmt: skip
    """[n, v] float32 products of rows (first term, and second where there are two) and tokens' weights, each from where it says.

    Past an edge of a tensor its descriptor reads zeros. The precision is that of float32 operands: three products of tf32, which
    together drop what float32 sums round away; short operands have products of their own type.
    """
    sums = tl.zeros((block_n, block_v), tl.float32)
    for start in range(0, width, block_d):
        w = weight.load([token, start])
        x = first.load([row, start])
        if upcast:
            w = w.to(tl.float32)
            x = x.to(tl.float32)
        sums = tl.dot(x, tl.trans(w), sums, input_precision="tf32x3")
        if two:
            y = second.load([row, start])
            if upcast:
                y = y.to(tl.float32)
            sums = tl.dot(y, tl.trans(w), sums, input_precision="tf32x3")
    return sums


@triton.jit
def _after_head(logits, kind: tl.constexpr, value):
    if kind == SOFTCAP:
        logits = value * _tanh(logits / value)
    elif kind == SCALE:
        logits = logits * value
    return logits


@triton.jit
def _summed(logits, best, maximum, total, weighted):
    """Running maximum, sum of exp(logit - maximum) and of (logit - maximum) exp(logit - maximum), with a tile taken in.

    ``best`` are the largest logits of the tile. Differences are kept above a number whose exp is 0: an infinite one would make
    0 x infinity of a token that has no probability. Maxima here let a NaN through.
    """
    risen = tl.maximum(maximum, best)
    fall = tl.maximum(maximum - risen, _NEVER, propagate_nan=tl.PropagateNan.ALL)
    below = tl.maximum(logits - risen[:, None], _NEVER, propagate_nan=tl.PropagateNan.ALL)
    weights = tl.exp(below)
    shrink = tl.exp(fall).to(tl.float64)
    weighted = shrink * (weighted + fall.to(tl.float64) * total) + tl.sum(weights * below, axis=1).to(tl.float64)
    total = shrink * total + tl.sum(weights, axis=1).to(tl.float64)
    return risen, total, weighted


@triton.jit
def _ordered(logits):
    """The bits of float32 logits as int32 that order as the logits do; both zeros are equal, NaN is above all."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & _INT_MAX)
    return tl.where(logits == logits, ordered, _NAN)


@triton.jit
def _threshold(kept):
    """The upper half of each row's worst key: what a later, so higher, id must exceed."""
    return (tl.min(kept, axis=1) >> 32).to(tl.int32)


@triton.jit
def _insert(kept_at, inside, logits, threshold, tokens, n_vocab):
    """Put the tokens of a tile that beat their row's threshold into its list in memory, best first; returns its new worst.

    Each round takes the best token left of every row that still has one, so there are as many rounds as the row with most
    survivors has; [n, slots] keys are read and written once.
    """
    order = tl.where((tokens < n_vocab)[None, :], _ordered(logits), _INT_MIN)
    best = tl.max(order, axis=1)
    kept = tl.load(kept_at, mask=inside[:, None], other=_KEY_MAX)
    while tl.max((best > threshold).to(tl.int32), axis=0) > 0:
        takes = best > threshold
        token = tl.min(tl.where(order == best[:, None], tokens[None, :], _INT_MAX), axis=1)
        key = (best.to(tl.int64) << 32) | (_LOW - token.to(tl.int64))
        worst = tl.min(kept, axis=1)
        kept = tl.where((kept == worst[:, None]) & takes[:, None], key[:, None], kept)
        order = tl.where(tokens[None, :] == token[:, None], _INT_MIN, order)
        best = tl.max(order, axis=1)
        threshold = tl.maximum(threshold, _threshold(kept))
    tl.store(kept_at, kept, mask=inside[:, None])
    tl.debug_barrier()  # the next reader of a list may be another thread of this program
    return _threshold(kept)


@triton.jit
def _count_above(targets, target_logits, above, row, inside, logits, tokens, n_vocab, count: tl.constexpr):
    """Add to each row's ``count`` targets how many tokens of a tile come before: larger logits, or equal ones of lower ids."""
    for number in tl.static_range(count):
        at = row.to(tl.int64) * count + number
        target = tl.load(targets + at, mask=inside, other=0)[:, None]
        logit = tl.load(target_logits + at, mask=inside, other=float("inf"))[:, None]
        before = (logits > logit) | ((logits == logit) & (tokens[None, :] < target))
        before &= (tokens[None, :] != target) & (tokens < n_vocab)[None, :]
        tl.atomic_add(above + at, tl.sum(before.to(tl.int32), axis=1), mask=inside, sem="relaxed")


@triton.jit
def _crossed(final, final_row, inside, logits, tokens, n_vocab):
    """[n] sums of the final layer's probabilities times the logits of a tile."""
    at = final + final_row.to(tl.int64)[:, None] * n_vocab + tokens[None, :]
    share = tl.load(at, mask=inside[:, None] & (tokens < n_vocab)[None, :], other=0.0)
    # a token of probability 0 adds nothing, also where its logit is minus infinity
    return tl.sum(tl.where(share > 0, share * logits, 0.0), axis=1).to(tl.float64)


@triton.jit
def readout_kernel(first, second, factor, weight, bias, targets, target_logits, final, final_rows,
                   bars, kept, maxima, totals, weighteds, above, crosses, n_rows, n_vocab, splits, k, step_value,
                   width: tl.constexpr, slots: tl.constexpr, two: tl.constexpr, has_bias: tl.constexpr,
                   n_targets: tl.constexpr, has_final: tl.constexpr, step_kind: tl.constexpr, upcast: tl.constexpr,
                   block_n: tl.constexpr, block_v: tl.constexpr, block_d: tl.constexpr):  # fmt: skip
    """Grid (row tiles, splits). Every output is written whole, so a launch may be repeated.

    Args:
        first, second: descriptors of [N, width], the two terms of the rows in the weight's dtype, by [block_n, block_d]; second
            is read if ``two``.
        factor: [N] float32, what the product is multiplied by.
        weight: descriptor of [V, width], by [block_v, block_d].
        bias: [V], read if ``has_bias``.
        targets: [N, n_targets] int32, and target_logits float32 the same.
        final: [T, V] float32 probabilities of the final layer, read if ``has_final``.
        final_rows: [N] int32, which of them each row is compared with.
        bars: in and out, [N] int64, 0 at first. Programs raise a row's to the worst logit of any list of k of it, as its ordered
            bits less the least there are: a smaller logit is not among the k best, whatever other parts of the vocabulary hold.
        kept: out, [N, splits, slots] int64 keys in no order; slots from k on hold the largest int64.
        maxima: out, [N, splits] float32.
        totals, weighteds: out, [N, splits] float64, relative to the maxima.
        above: in and out, [N, n_targets] int32, counts of tokens before each target; 0 at first.
        crosses: out if ``has_final``, [N, splits] float64, sums of probabilities times logits.
    """
    split = tl.program_id(1)
    first_row = tl.program_id(0) * block_n
    row = first_row + tl.arange(0, block_n)
    inside = row < n_rows
    partial = row.to(tl.int64) * splits + split
    scale = tl.load(factor + row, mask=inside, other=0.0)

    slot = tl.arange(0, slots)
    kept_at = kept + partial[:, None] * slots + slot[None, :]
    empty = tl.where(slot < k, _KEY_MIN + slot.to(tl.int64), _KEY_MAX)  # distinct, as all keys are
    tl.store(kept_at, tl.broadcast_to(empty[None, :], (block_n, slots)), mask=inside[:, None])
    tl.debug_barrier()
    worst = tl.where(inside, _INT_MIN, _INT_MAX)
    maximum = tl.full((block_n,), _LOWEST, tl.float32)
    total = tl.zeros((block_n,), tl.float64)
    weighted = tl.zeros((block_n,), tl.float64)
    cross = tl.zeros((block_n,), tl.float64)
    if has_final:
        final_row = tl.load(final_rows + row, mask=inside, other=0)

    tiles = tl.cdiv(n_vocab, block_v)
    share = tl.cdiv(tiles, splits)
    tile = split * share
    last = tl.minimum(tile + share, tiles)
    while tile < last:  # not a range: the interpreter of triton 3.6 with numpy 2.4 takes no tensor as its bound
        first_token = tile * block_v
        token = first_token + tl.arange(0, block_v)
        logits = _product(first, second, weight, first_row, first_token, width, two, upcast, block_n, block_v, block_d)
        logits *= scale[:, None]
        if has_bias:
            logits += tl.load(bias + token, mask=token < n_vocab, other=0.0).to(tl.float32)[None, :]
        logits = _after_head(logits, step_kind, step_value)
        if first_token + block_v > n_vocab:
            logits = tl.where((token < n_vocab)[None, :], logits, float("-inf"))
        best = tl.max(logits, axis=1)
        maximum, total, weighted = _summed(logits, best, maximum, total, weighted)
        _count_above(targets, target_logits, above, row, inside, logits, token, n_vocab, n_targets)
        if has_final:
            cross += _crossed(final, final_row, inside, logits, token, n_vocab)
        bar = tl.load(bars + row, mask=inside, other=1, volatile=True)  # others raise it meanwhile
        equal = tl.maximum(bar - 1, 0) + _INT_MIN  # one equal to the bar may have the lower id
        threshold = tl.maximum(worst, equal.to(tl.int32))
        if tl.max((_ordered(best) > threshold).to(tl.int32), axis=0) > 0:
            worst = _insert(kept_at, inside, logits, threshold, token, n_vocab)
            tl.atomic_max(bars + row, worst.to(tl.int64) - _INT_MIN, mask=inside, sem="relaxed")
        tile += 1
    tl.store(maxima + partial, maximum, mask=inside)
    tl.store(totals + partial, total, mask=inside)
    tl.store(weighteds + partial, weighted, mask=inside)
    if has_final:
        tl.store(crosses + partial, cross, mask=inside)


@triton.jit
def terms_kernel(rows, first, second, factor, width, row_stride, block: tl.constexpr):
    """Grid (N,): the two terms of each row and the factor of their products, as ``terms.split_terms`` makes them.

    Args:
        rows: [N, width] float32, rows ``row_stride`` elements apart.
        first, second: out, [N, width], contiguous.
        factor: out, [N] float32.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    x = tl.load(rows + row * row_stride + column, mask=inside, other=0.0)
    largest = tl.max(tl.abs(x), axis=0)
    exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 255) - 126  # as frexp gives it, where it is not clamped below
    exponent = tl.minimum(tl.maximum(exponent, -100), 128) - 14
    scaled = x * ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    high = scaled.to(first.dtype.element_ty)
    tl.store(first + row * width + column, high, mask=inside)
    tl.store(second + row * width + column, (scaled - high.to(tl.float32)).to(second.dtype.element_ty), mask=inside)
    tl.store(factor + row, ((127 + exponent) << 23).to(tl.float32, bitcast=True))
