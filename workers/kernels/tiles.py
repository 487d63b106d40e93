"""Products of float32 rows with the unembedding on one core that multiplies tiles of bfloat16, by terms of each number.

Shapes: N rows, V entries, D width, T terms, P panels of 32 rows or entries, L numbers of a panel.
"""

import ctypes
import sys
from functools import cache, partial

import numpy as np
import torch
from llvmlite import binding
from numba import config
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.kernels.amx import DEPTH, EDGE, LONG, SHORT, TILE, TILES, close_tiles, matrix_tile, open_tiles
from raylens.workers.kernels.compiled import compiled
from raylens.workers.kernels.floats import Floats
from raylens.workers.kernels.laid_out import Kernel

Halves = NDArray[np.uint16]

#: Rows or entries of a panel, and numbers of one of its tiles.
SIZE, _TILE = TILES * EDGE, TILE // 2
#: Steps of the width whose products are added up one after the other; so much of the rows stays in the second cache, and these
#: sums are added then, which rounds less than one sum of a whole width.
_STEPS = 24
#: Numbers of a step: of rows, of long entries, of short ones.
_ROW, _LONG, _SHORT = (count * TILES * _TILE for count in (LONG.rows, LONG.entries, SHORT.entries))
#: Rows whose tiles and sums leave room in the second cache for those of the entries.
_MOST_ROWS = 256
#: Entries laid out at once, which bounds what that takes beside the result.
_CHUNK = 4096
#: arch_prctl's number on 64-bit x86, its code for "may this process use", and what: the contents of tiles
#: (Linux, Documentation/arch/x86/xstate.rst).
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18

_long_tile, _short_tile = matrix_tile(LONG), matrix_tile(SHORT)


@cache
def may_use() -> bool:
    """Whether this processor multiplies tiles of bfloat16 and the system lets this process do so."""
    features = binding.get_host_cpu_features()
    has = features.get("amx-tile") and features.get("amx-bf16") and not (config.CPU_NAME or config.CPU_FEATURES)
    return bool(has) and sys.platform == "linux" and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


def lay_out(matrix: Tensor, terms: int, paired: bool) -> Halves:
    """[N, D] as [P, L] panels: for each 32 numbers of the width, for each term, two tiles; zeros fill up the last.

    Args:
        matrix: float32 or bfloat16.
        terms: of each number, the largest first.
        paired: whether a tile's line holds pairs of neighbours in the width of each of 16 entries, as the second factor has to
            lie, or 32 numbers of one row.
    """
    count, width = matrix.shape
    rows, steps = -(-count // SIZE), -(-width // DEPTH)
    rest = matrix.new_zeros(rows * SIZE, steps * DEPTH, dtype=torch.float32)
    rest[:count, :width] = matrix
    split = torch.empty(terms, *rest.shape, dtype=torch.bfloat16)
    for term in split:
        term.copy_(rest)
        rest -= term
    tiles = split.view(terms, rows, TILES, EDGE, steps, DEPTH)
    if paired:
        lines = tiles.view(terms, rows, TILES, EDGE, steps, DEPTH // 2, 2).permute(1, 4, 0, 2, 5, 3, 6)
    else:
        lines = tiles.permute(1, 4, 0, 2, 3, 5)
    halves: Halves = lines.reshape(rows, -1).view(torch.uint16).numpy()
    return halves


@compiled()
def multiply(rows: Halves, entries: Halves, out: Floats) -> None:
    """Put all products of rows with entries into ``out``.

    Args:
        rows: [P, L] of three terms.
        entries: [P, L] of as many, or of one.
        out: [N, V] contiguous, both filled up as the panels are.
    """
    short, steps, width = entries.shape[1] != rows.shape[1], rows.shape[1] // _ROW, out.shape[1]
    left, right, whole, part = rows.reshape(-1), entries.reshape(-1), out.reshape(-1), np.empty(SIZE * SIZE, np.float32)
    open_tiles()
    for first in range(0, steps, _STEPS):
        stop = min(first + _STEPS, steps)
        sums, stride = (part, SIZE) if first else (whole, width)
        for e in range(entries.shape[0]):
            for r in range(rows.shape[0]):
                row, entry, at = r * rows.shape[1], e * entries.shape[1], r * SIZE * width + e * SIZE
                following, place = entry + entries.shape[1], 0 if first else at
                if short:
                    ahead = following + r % (_SHORT // _TILE) * _TILE
                    _short_tile(left, row, right, entry, sums, place, first, stop, stride, ahead)
                else:
                    ahead = following + r % (_LONG // _TILE) * _TILE
                    _long_tile(left, row, right, entry, sums, place, first, stop, stride, ahead)
                if first:
                    _add(part, whole, at, width)
    close_tiles()


@compiled()
def _add(part: Floats, out: Floats, at: int, width: int) -> None:
    for i in range(SIZE):
        for j in range(SIZE):
            out[at + i * width + j] += part[i * SIZE + j]


def _entries(matrix: Tensor) -> Halves:
    """The panels of [V, D] float32 or bfloat16 entries, laid out part by part."""
    terms = (LONG if matrix.dtype == torch.float32 else SHORT).entries
    width = -(-matrix.shape[1] // DEPTH) * terms * TILES * _TILE
    panels = torch.empty(-(-len(matrix) // SIZE), width, dtype=torch.uint16).numpy()
    for start in range(0, len(matrix), _CHUNK):
        part = lay_out(matrix[start : start + _CHUNK], terms, paired=True)
        panels[start // SIZE :][: len(part)] = part
    return panels


_rows = partial(lay_out, terms=LONG.rows, paired=False)
KERNEL = Kernel("tiles of bfloat16 terms", SIZE, SIZE, _MOST_ROWS, _rows, _entries, multiply)
