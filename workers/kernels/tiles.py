"""Products of float32 rows with the unembedding on one core that multiplies tiles of bfloat16, by terms of each number.

Shapes: N rows, V entries, D width, T terms, P panels of 32 rows or entries, L numbers of a panel.
"""

import ctypes
import sys
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import config
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.kernels.amx import DEPTH, EDGE, LONG, MIDDLE, SHORT, TILE, TILES, close_tiles, matrix_tile, open_tiles
from raylens.workers.kernels.compiled import compiled
from raylens.workers.kernels.floats import Floats
from raylens.workers.kernels.laid_out import Kernel

Halves = NDArray[np.uint16]

#: Rows or entries of a panel, and numbers of one of its tiles, and pairs of numbers.
SIZE, _TILE, _PAIRS = TILES * EDGE, TILE // 2, TILE // 4
#: Steps of the width whose products are added up one after the other; so much of the rows stays in the second cache, and these
#: sums are added then, which rounds less than one sum of a whole width.
_STEPS = 24
#: What is added up for entries of a type.
_TERMS = {torch.float32: LONG, torch.float16: MIDDLE, torch.bfloat16: SHORT}
#: Numbers of a step: of rows, of long entries, of middle and of short ones.
_ROW, _LONG, _MIDDLE, _SHORT = (count * TILES * _TILE for count in (LONG.rows, LONG.entries, MIDDLE.entries, SHORT.entries))
#: Panels of float16 numbers that are widened at once.
_WIDENED = 64
#: Rows whose tiles and sums leave room in the second cache for those of the entries.
_MOST_ROWS = 256
#: Bits that a float32 number has more than one of bfloat16, a mask of the others, just less than half of the last of them, a NaN.
_LOWER, _UPPER, _HALF, _NAN = 16, 0xFFFF0000, 0x7FFF, 0x7FC00000
#: arch_prctl's number on 64-bit x86, its code for "may this process use", and what: the contents of tiles
#: (Linux, Documentation/arch/x86/xstate.rst).
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18

_long_tile, _middle_tile, _short_tile = matrix_tile(LONG), matrix_tile(MIDDLE), matrix_tile(SHORT)


@cache
def may_use() -> bool:
    """Whether this processor multiplies tiles of bfloat16 and the system lets this process do so."""
    features = binding.get_host_cpu_features()
    has = features.get("amx-tile") and features.get("amx-bf16") and not (config.CPU_NAME or config.CPU_FEATURES)
    return bool(has) and sys.platform == "linux" and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


def lay_out(matrix: Tensor, terms: int, paired: bool) -> Halves:
    """[N, D] as [P, L] panels: for each 32 numbers of the width, for each term, two tiles; zeros fill up the last.

    Args:
        matrix: float32, float16 or bfloat16.
        terms: of each number, the largest first.
        paired: whether a tile's line holds pairs of neighbours in the width of each of 16 entries, as the second factor has to
            lie, or 32 numbers of one row.
    """
    count, width = matrix.shape
    panels = np.empty((-(-count // SIZE), -(-width // DEPTH) * terms * TILES * _PAIRS), np.uint32)
    if matrix.dtype == torch.bfloat16:
        _lay_out(matrix.contiguous().view(torch.uint16).numpy(), _LOWER, terms, paired, panels)
        return panels.view(np.uint16)
    for first in range(0, len(panels), _WIDENED):
        part = matrix[first * SIZE : (first + _WIDENED) * SIZE].float().contiguous()
        _lay_out(part.view(torch.uint32).numpy(), 0, terms, paired, panels[first : first + _WIDENED])
    return panels.view(np.uint16)


@compiled()
def _lay_out(bits: NDArray[Any], shift: int, terms: int, paired: bool, panels: NDArray[np.uint32]) -> None:
    """Put into ``panels`` pairs of neighbours in the width.

    Args:
        bits: of [N, D] numbers.
        shift: what makes them those of float32 numbers.
        terms, paired: as above.
        panels: [P, L / 2].
    """
    steps, across, down = panels.shape[1] // (terms * TILES * _PAIRS), EDGE if paired else 1, 1 if paired else DEPTH // 2
    line, term = np.empty(DEPTH, np.float32), np.empty(DEPTH, np.uint16)
    pairs = term.view(np.uint32)
    for panel in range(panels.shape[0]):
        for step in range(steps):
            for place in range(SIZE):
                _take(bits, panel * SIZE + place, step * DEPTH, np.uint32(shift), line)
                for number in range(terms):
                    _split(line, term)
                    first = ((step * terms + number) * TILES + place // EDGE) * _PAIRS + place % EDGE * down
                    for pair in range(DEPTH // 2):
                        panels[panel, first + pair * across] = pairs[pair]


@compiled()
def _take(bits: NDArray[Any], row: int, start: int, shift: np.uint32, line: Floats) -> None:
    """The next 32 numbers of a row, zeros where there are none."""
    here = max(0, min(DEPTH, bits.shape[1] - start)) if row < bits.shape[0] else 0
    for i in range(here):
        line[i] = np.uint32(np.uint32(bits[row, start + i]) << shift).view(np.float32)
    line[here:] = 0


@compiled()
def _split(line: Floats, term: Halves) -> None:
    """Put the bits of the nearest numbers of bfloat16, the even one of two, into ``term``, and leave what is lost by that."""
    for i in range(DEPTH):
        number = line[i]
        bits = np.float32(number).view(np.uint32)
        even = (bits >> np.uint32(_LOWER)) & np.uint32(1)
        nearest = np.uint32(np.uint32(bits + np.uint32(_HALF) + even) & np.uint32(_UPPER))
        nearest = nearest if number == number else np.uint32(_NAN)
        line[i] = number - np.uint32(nearest).view(np.float32)
        term[i] = np.uint16(nearest >> np.uint32(_LOWER))


@compiled()
def multiply(rows: Halves, entries: Halves, out: Floats) -> None:
    """Put all products of rows with entries into ``out``.

    Args:
        rows: [P, L] of three terms.
        entries: [P, L] of as many, of two or of one.
        out: [N, V] contiguous, both filled up as the panels are.
    """
    steps, width = rows.shape[1] // _ROW, out.shape[1]
    step = entries.shape[1] // steps
    left, right, whole, part = rows.reshape(-1), entries.reshape(-1), out.reshape(-1), np.empty(SIZE * SIZE, np.float32)
    open_tiles()
    for first in range(0, steps, _STEPS):
        stop = min(first + _STEPS, steps)
        sums, stride = (part, SIZE) if first else (whole, width)
        for e in range(entries.shape[0]):
            for r in range(rows.shape[0]):
                row, entry, at = r * rows.shape[1], e * entries.shape[1], r * SIZE * width + e * SIZE
                following, place = entry + entries.shape[1], 0 if first else at
                ahead = following + r % (step // _TILE) * _TILE
                if step == _SHORT:
                    _short_tile(left, row, right, entry, sums, place, first, stop, stride, ahead)
                elif step == _MIDDLE:
                    _middle_tile(left, row, right, entry, sums, place, first, stop, stride, ahead)
                else:
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
    """The panels of [V, D] float32, float16 or bfloat16 entries."""
    return lay_out(matrix, _TERMS[matrix.dtype].entries, paired=True)


_rows = partial(lay_out, terms=LONG.rows, paired=False)
KERNEL = Kernel("tiles of bfloat16 terms", SIZE, SIZE, _MOST_ROWS, _rows, _entries, multiply)
