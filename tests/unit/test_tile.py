"""The innermost loop: right, the same whatever its shape, and held in registers on the processors that it is for."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding
from numpy.typing import NDArray

from raylens.workers.kernels.tile import NARROW, WIDE, Shape, register_tile

SHAPES = [NARROW, WIDE, Shape(2, 4, 4)]
#: Processors with registers of 256 bits, and of 512.
PROCESSORS = [(NARROW, name) for name in ("haswell", "skylake", "znver1", "znver3")] + [
    (WIDE, name) for name in ("skylake-avx512", "icelake-server", "sapphirerapids", "znver4", "znver5")
]


@cache
def multiplier(shape: Shape) -> Callable[..., None]:
    tile = register_tile(shape)

    @numba.njit("void(f4[::1], f4[::1], i8, i8, f4[::1], i8, i8)")  # type: ignore[untyped-decorator, unused-ignore]
    def multiply(left: Any, right: Any, start: Any, stop: Any, out: Any, at: Any, stride: Any) -> None:
        tile(left, right, start, stop, out, at, stride)

    return multiply  # type: ignore[no-any-return, unused-ignore]


def product(
    shape: Shape, rows: NDArray[np.float32], entries: NDArray[np.float32], cut: int, at: int, gap: int
) -> NDArray[np.float32]:
    """[rows, entries], which must be all that is written of a larger matrix; the sums up to ``cut`` and from it on are added."""
    stride = shape.entries + gap
    out = np.full(at + shape.rows * stride, 7.0, np.float32)
    for start, stop in ((0, cut), (cut, rows.shape[1])):
        multiplier(shape)(rows.T.ravel(), entries.T.ravel(), start, stop, out, at, stride)
    assert (out[:at] == 7).all()
    found = out[at:].reshape(shape.rows, stride)
    assert (found[:, shape.entries :] == 7).all()
    return found[:, : shape.entries]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(cut=st.integers(1, 67), more=st.integers(0, 67), at=st.integers(0, 5), gap=st.integers(0, 5), seed=st.integers(0, 9))
def test_a_tile_is_a_product(shape: Shape, cut: int, more: int, at: int, gap: int, seed: int) -> None:
    """Of any depth, anywhere in a matrix; each sum is made in the order of the depth, by fused additions, whatever the shape."""
    depth = cut + more
    generator = np.random.default_rng(seed)
    rows, entries = (generator.normal(size=(size, depth)).astype(np.float32) for size in (shape.rows, shape.entries))
    found = product(shape, rows, entries, cut, at, gap)
    exact = rows.astype(np.float64) @ entries.T.astype(np.float64)
    np.testing.assert_allclose(found, exact, rtol=0, atol=3e-6 * depth**0.5)
    few = [np.zeros((size, depth), np.float32) for size in (NARROW.rows, NARROW.entries)]
    few[0][0], few[1][0] = rows[0], entries[0]
    assert product(NARROW, few[0], few[1], cut, 0, 0)[0, 0] == found[0, 0]


@pytest.mark.parametrize(("shape", "processor"), PROCESSORS, ids=str)
def test_a_tile_stays_in_registers(shape: Shape, processor: str) -> None:
    """Compiled for each processor, the innermost loop reads its two panels and nothing else: no sum goes through memory."""
    (code,) = multiplier(shape).inspect_llvm().values()  # type: ignore[attr-defined]
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=processor, opt=3)
    blocks = re.split(r"\n\.L", target.emit_assembly(binding.parse_assembly(code)))
    loop = max(blocks, key=lambda block: block.count("vfmadd"))
    registers = shape.rows * shape.entries // shape.lanes
    assert loop.count("vfmadd") == 4 * registers
    assert len(re.findall(r"\tvmov[au]ps\t|\tvbroadcastss\t", loop)) == 4 * (shape.rows + shape.entries // shape.lanes)
    assert "rsp" not in loop
    assert ("zmm" in loop) == (shape == WIDE)
