"""The read-out of rows by a linear head in one Triton kernel: logits live in registers only, [N, V] is never in memory.

Same meaning as ``raylens.workers.topk``, whose ``Readout`` it returns and against which it is tested. Importing this module
imports triton. Shapes: N rows, D width, V vocabulary, K tokens kept, S parts of the vocabulary.

Method: tiles of rows times tiles of the vocabulary, each logit tile consumed where it was made: a running maximum, sum of
exponentials and weighted sum (online softmax, Milakov & Gimelshein 2018, arXiv:1805.02867, as FlashAttention uses it,
arXiv:2205.14135) and a list of the K best entered only by what beats the row's threshold. Not materialising logits is the idea
of Cut Cross-Entropy (Wijmans et al., arXiv:2411.09009, apple/ml-cross-entropy), which has no top-k. Parts of the vocabulary
run side by side; each leaves K keys and three numbers a row, merged here.

Precision: products accumulate in float32. A float32 weight is multiplied by three products of tf32 (tf32x3), within 5e-6 in use,
never by one. For a bfloat16 or float16 weight a row is the sum of two terms of that type (terms.py), and each term has its own
product: a logit is off by at most 2**-17 sum |x w| besides the rounding of float32 sums, about 5e-5 in use. One bfloat16 term
alone would be 500 times worse.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from raylens.workers.after_head import AfterHead
from raylens.workers.asked import Tally, nothing_asked
from raylens.workers.kernels import readout_kernel as kernels
from raylens.workers.running import MOST_FUSED
from raylens.workers.terms import split_terms
from raylens.workers.topk import Readout, finished

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROW_TILE = 128
#: Most row tiles of one launch: the two bfloat16 terms of 2,048 rows at D=4096 are 33 MB, which a GPU's L2 cache holds.
ROW_TILES = 16
#: Block shapes to try, the last for small work. Tokens count for more than rows: a step of the product loads two terms of the
#: rows but the weight once.
SHAPES = [
    triton.Config({"block_n": n, "block_v": v, "block_d": d}, num_warps=warps, num_stages=3, pre_hook=lambda args: _cut(args))
    for n, v, d, warps in [(128, 256, 64, 8), (128, 128, 64, 8), (128, 128, 32, 8), (64, 128, 64, 4), (64, 64, 32, 4)]
]
#: Multiplications of a launch from which a trial of all shapes says something about them.
_WORTH_TUNING = 1 << 33


@torch.inference_mode()
def readout(
    rows: Tensor, weight: Tensor, bias: Tensor | None, step: AfterHead, k: int, tally: Tally | None = None,
    probabilities: Tensor | None = None,
) -> Readout:  # fmt: skip
    """The k best tokens, logsumexp and entropy of each row, and what else is asked of them.

    Args:
        rows: [N, D] float32, after the final norm. The norm stays outside: it differs between models, and costs D operations
            a row where the head costs D x V.
        weight: [V, D] of the head, float32, bfloat16 or float16; the last dimension contiguous. It is copied at each call if its
            rows do not begin at multiples of 16 bytes.
        bias: [V] of any of these types, or None.
        step: after the head; a factor or a cap, not both.
        k: at most 64 and at most V.
        tally: of what is asked; it is completed.
        probabilities: [T, V] float32 of the final layer, contiguous, where the tally asks for the distance to it.

    Returns:
        Exact for the logits as computed: best first, equal logits by ascending id. A row with a logit that is NaN or plus
        infinity has an entropy that is not finite; its ids are in range and mean nothing.

    Raises:
        ValueError: a shape, dtype, stride, device, step or k that does not fit.
    """
    _check(rows, weight, bias, k)
    tally = tally or nothing_asked(len(rows), rows.device)
    if not len(rows):
        none = rows.new_empty(0)
        ids = rows.new_empty(0, k, dtype=torch.int64)
        return Readout(ids, rows.new_empty(0, k), none, none, *tally.finish(ids, rows.new_empty(0, k), none.double()))
    return _merged(*_launched(rows, weight, bias, step, k, tally, probabilities), k, tally)


def _step_arguments(step: AfterHead) -> tuple[int, float]:
    value = step.cap or step.factor
    if not 0 < abs(value) < float("inf") or (step.cap and step.factor != 1.0):
        raise ValueError(f"no such step after the head in the kernel: {step}")
    if step.cap:
        return kernels.SOFTCAP, value
    return (kernels.NOTHING if value == 1.0 else kernels.SCALE), value


def _check(rows: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> None:
    if rows.dtype != torch.float32 or rows.dim() != 2:
        raise ValueError(f"rows must be [N, D] float32, not {list(rows.shape)} {rows.dtype}")
    if weight.dtype not in _DTYPES or weight.dim() != 2 or weight.shape[1] != rows.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"weight must be [V, {rows.shape[1]}] float32, bfloat16 or float16, not {list(weight.shape)} {weight.dtype}"
        )
    if weight.stride(1) != 1:
        raise ValueError("the weight's last dimension must be contiguous")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype not in _DTYPES or not bias.is_contiguous()):
        raise ValueError(f"bias must be [{weight.shape[0]}] floating point and contiguous, not {list(bias.shape)} {bias.dtype}")
    if not 1 <= k <= min(MOST_FUSED, weight.shape[0]):
        raise ValueError(f"k must be 1 to {min(MOST_FUSED, weight.shape[0])}, not {k}")
    if len({tensor.device for tensor in (rows, weight, bias) if tensor is not None}) != 1:
        raise ValueError("rows, weight and bias must be on one device")
    if rows.is_cuda == _interpreted():
        raise ValueError(f"rows are on {rows.device}: compiled kernels need a GPU, TRITON_INTERPRET=1 needs the CPU")


def _interpreted() -> bool:
    return not isinstance(kernels.readout_kernel, triton.runtime.JITFunction)


def terms(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What terms.split_terms gives, in one pass over [N, D]."""
    first, second = torch.empty(2, *rows.shape, dtype=dtype, device=rows.device)
    factor = torch.empty(len(rows), device=rows.device)
    with _current(rows.device):
        kernels.terms_kernel[(len(rows),)](
            rows, first, second, factor, rows.shape[1], rows.stride(0), block=triton.next_power_of_2(rows.shape[1])
        )
    return first, second, factor


def _terms(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows as they are multiplied; for float32 the first term is the row itself, and the second is not read."""
    if dtype == torch.float32:
        return rows, rows, torch.ones(len(rows), device=rows.device)
    return split_terms(rows, dtype) if _interpreted() else terms(rows, dtype)  # interpreted, bfloat16 is cut, not rounded


def _launched(
    rows: Tensor, weight: Tensor, bias: Tensor | None, step: AfterHead, k: int, tally: Tally, probabilities: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys [N, S, k], and maxima, totals and weighted totals [N, S]; counts and sums are left in the tally."""
    (n, width), vocab, device = rows.shape, weight.shape[0], rows.device
    kind, value = _step_arguments(step)
    slots = max(16, triton.next_power_of_2(k))
    row_tiles, splits = _shares(n, vocab, device)
    at_once = row_tiles * _ROW_TILE
    first, second, factor = _terms(rows.contiguous(), weight.dtype)
    first, second, weight = _aligned(first), _aligned(second), _aligned(weight)
    targets, target_logits = tally.targets.int().contiguous(), tally.logits.contiguous()
    final_rows, above = tally.token.int(), torch.zeros_like(targets)
    bars = torch.zeros(n, dtype=torch.int64, device=device)
    kept = torch.empty(n, splits, slots, dtype=torch.int64, device=device)
    maxima = torch.empty(n, splits, device=device)
    totals, weighteds, crosses = torch.empty(3, n, splits, dtype=torch.float64, device=device)
    with _current(device):
        for start in range(0, n, at_once):
            part = slice(start, start + at_once)
            count = len(rows[part])
            launch = _launcher(device, count * vocab * width, slots)
            launch[partial(_grid, count, splits)](
                _described(first[part]), _described(second[part]), factor[part], _described(weight),
                factor if bias is None else bias, targets[part], target_logits[part],
                factor if probabilities is None else probabilities, final_rows[part], bars[part], kept[part],
                maxima[part], totals[part], weighteds[part], above[part], crosses[part],
                count, vocab, splits, k, value, width=width, slots=slots, two=weight.dtype != torch.float32,
                has_bias=bias is not None, n_targets=targets.shape[1], has_final=probabilities is not None,
                step_kind=kind, upcast=_interpreted(),
            )  # fmt: skip
    tally.above = above.long()
    if probabilities is not None:
        tally.cross = crosses.sum(dim=1)
    return kept[:, :, :k], maxima, totals, weighteds


def _grid(rows: int, splits: int, sizes: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(rows, sizes["block_n"]), splits


def _described(tensor: Tensor) -> TensorDescriptor:
    """Of a matrix whose rows begin at multiples of 16 bytes, for a launch that says by which blocks it is read."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1])


def _aligned(tensor: Tensor) -> Tensor:
    """The matrix, copied if its rows do not begin at multiples of 16 bytes, which those of any usual width do."""
    if tensor.stride(0) * tensor.itemsize % 16 == 0 and tensor.data_ptr() % 16 == 0:
        return tensor
    width = tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, -width % 16))[:, :width]


def _cut(args: dict[str, Any]) -> None:
    """Tell the descriptors of a launch its block sizes."""
    args["first"].block_shape = args["second"].block_shape = [args["block_n"], args["block_d"]]
    args["weight"].block_shape = [args["block_v"], args["block_d"]]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whichever the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _shares(rows: int, vocab: int, device: torch.device) -> tuple[int, int]:
    """Row tiles of one launch and parts of the vocabulary, together about one program for each multiprocessor.

    Fewer parts of more rows are better: each part makes its list of the best anew. No part is left but a few tiles.
    """
    if device.type == "cpu":
        return 1, 2
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    tiles = -(-rows // _ROW_TILE)
    launches = -(-tiles // ROW_TILES)
    at_once = -(-tiles // launches)
    return at_once, max(1, min(processors // at_once, -(-vocab // 1024)))


def _launcher(device: torch.device, operations: int, slots: int) -> Any:
    if device.type == "cpu":
        return Fixed(block_n=16, block_v=32, block_d=16)
    if operations < _WORTH_TUNING:
        return Fixed(**SHAPES[-1].all_kwargs())
    return _tuned(slots > 16)


class Fixed:
    """Launches the kernel with given block sizes and compiler options."""

    def __init__(self, **sizes: int) -> None:
        self._sizes = sizes

    def __getitem__(self, grid: Callable[[dict[str, int]], tuple[int, int]]) -> Any:
        return partial(self._launch, kernels.readout_kernel[grid])

    def _launch(
        self, kernel: Callable[..., Any], first: Any, second: Any, factor: Tensor, weight: Any, *args: Any, **options: Any
    ) -> Any:
        _cut({"first": first, "second": second, "weight": weight, **self._sizes})
        return kernel(first, second, factor, weight, *args, **options, **self._sizes)


@lru_cache
def _tuned(long_lists: bool) -> Any:
    """The kernel with the best of the block shapes, by trial at the first large launch for a width, dtype and length of lists.

    Lists of more than 16 leave too few registers for the widest tile.
    """
    shapes = SHAPES[1:] if long_lists else SHAPES
    return triton.autotune(shapes, key=["width", "slots", "two"], reset_to_zero=["bars", "above"])(kernels.readout_kernel)


def _merged(kept: Tensor, maxima: Tensor, totals: Tensor, weighteds: Tensor, k: int, tally: Tally) -> Readout:
    """One Readout from S parts: keys [N, S, k] and statistics [N, S]."""
    keys = torch.topk(kept.flatten(1), k, dim=1).values
    ids = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    order = (keys >> 32).int()
    values = (order ^ ((order >> 31) & 0x7FFFFFFF)).view(torch.float32)

    maximum = maxima.amax(dim=1).double()
    fall = maxima.double() - maximum.unsqueeze(1)
    shrink = torch.exp(fall)
    total = (shrink * totals).sum(dim=1)
    weighted = (shrink * (weighteds + fall * totals)).sum(dim=1)
    return finished(values, ids, maximum, total, weighted, tally)
