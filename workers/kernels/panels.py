"""Products of float32 rows with the unembedding on one core, from copies of both that lie as the innermost loop reads them.

Shapes: N rows, V entries, D width, P panels, S rows or entries of a panel.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import config
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.kernels.compiled import compiled
from raylens.workers.kernels.floats import Floats
from raylens.workers.kernels.laid_out import Kernel
from raylens.workers.kernels.tile import NARROW, WIDE, register_tile

_FEATURES = binding.get_host_cpu_features()
#: Whether this processor multiplies and adds at once; elsewhere each pair would be a call of the C library.
#: Nor where numba was told to compile for another processor than this.
SUPPORTED = bool(_FEATURES.get("fma")) and not (config.CPU_NAME or config.CPU_FEATURES)
SHAPE = WIDE if _FEATURES.get("avx512f") else NARROW
#: Products that are added up one after the other; these sums are added then, which rounds less than one sum of a whole width
#: (docs/decisions/0017).
CHAIN = 128
_LOWER = np.uint32(16)
_tile = register_tile(SHAPE)


def lay_out(matrix: Tensor, size: int) -> NDArray[Any]:
    """[N, D] as [P, D, S] panels of S rows, the same number of all side by side; zeros fill up the last.

    float32 stays so, float16 becomes it; of bfloat16 come the bits, uint16, which are the upper halves of float32 numbers.
    """
    width, whole = matrix.shape[1], len(matrix) // size
    wide = torch.float32 if matrix.dtype == torch.float16 else matrix.dtype
    panels = matrix.new_zeros(-(-len(matrix) // size), width, size, dtype=wide)
    panels[:whole] = matrix[: whole * size].reshape(whole, size, width).transpose(1, 2)
    if rest := len(matrix) % size:
        panels[whole, :, :rest] = matrix[whole * size :].T
    numbers: NDArray[Any] = (panels.view(torch.uint16) if panels.dtype == torch.bfloat16 else panels).numpy()
    return numbers


@compiled()
def _multiply_panel(rows: Floats, right: Floats, out: Floats, first: int, width: int) -> None:
    panels, depth, high = rows.shape
    for r in range(panels):
        left = rows[r].reshape(-1)
        for start in range(0, depth, CHAIN):
            _tile(left, right, start, min(start + CHAIN, depth), out, r * high * width + first, width)


def multiply(rows: Floats, entries: NDArray[Any], out: Floats) -> None:
    """Put all products of rows with entries into ``out``.

    A panel of entries meets all rows before the next one, and so comes from memory but once.

    Args:
        rows: [P, D, S] panels of ``SHAPE.rows`` rows.
        entries: [P, D, S] panels of ``SHAPE.entries`` entries.
        out: [N, V] contiguous, both filled up as the panels are.
    """
    if entries.dtype == np.float32:
        _multiply(rows, entries, out)
    else:
        _multiply_short(rows, entries, out)


@compiled()
def _multiply(rows: Floats, entries: Floats, out: Floats) -> None:
    for e in range(entries.shape[0]):
        _multiply_panel(rows, entries[e].reshape(-1), out.reshape(-1), e * entries.shape[2], out.shape[1])


@compiled()
def _multiply_short(rows: Floats, entries: NDArray[np.uint16], out: Floats) -> None:
    """Each panel becomes float32, which is exact, before rows meet it."""
    right = np.empty(entries.shape[1] * entries.shape[2], np.float32)
    for e in range(entries.shape[0]):
        halves = entries[e].reshape(-1)
        for i in range(right.shape[0]):
            right[i] = np.uint32(np.uint32(halves[i]) << _LOWER).view(np.float32)
        _multiply_panel(rows, right, out.reshape(-1), e * entries.shape[2], out.shape[1])


KERNEL = Kernel(
    "panels", SHAPE.rows, SHAPE.entries, 512, partial(lay_out, size=SHAPE.rows), partial(lay_out, size=SHAPE.entries), multiply
)
