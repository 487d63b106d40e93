"""The innermost loop for processors that multiply tiles: right, on any machine, by tile registers that are played by numpy."""

import ctypes
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding, ir
from numpy.typing import NDArray

from raylens.workers.kernels.amx import LONG, MIDDLE, SHORT, TILES, MatrixTile, Terms, schedule
from raylens.workers.kernels.tiles import SIZE, lay_out

TYPES = {LONG: torch.float32, MIDDLE: torch.float16, SHORT: torch.bfloat16}
each_terms = pytest.mark.parametrize("terms", TYPES, ids=lambda terms: str(TYPES[terms]).removeprefix("torch."))
#: Loads of a step.
LOADS = {LONG: 14, MIDDLE: 12, SHORT: 8}
_LONG, _POINTER = ir.IntType(64), ir.IntType(8).as_pointer()


def code(terms: Terms) -> str:
    """A function of left, right, out, first step, the one behind the last, bytes between rows of sums, and what to fetch."""
    module = ir.Module()
    signature = ir.FunctionType(ir.VoidType(), [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER])
    function = ir.Function(module, signature, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    left, right, out, first, stop, stride, ahead = function.args
    MatrixTile(builder, terms, left, right, out, stride).build(first, stop, ahead)
    builder.ret_void()
    return str(module)


class Registers:
    """Eight tiles, each 16 lines of 64 bytes, and what the processor does with them."""

    def __init__(self) -> None:
        self.tiles = np.full((8, 16, 64), 255, np.uint8)

    def tilezero(self, tile: int) -> None:
        self.tiles[tile] = 0

    def tileloadd64(self, tile: int, place: int, stride: int) -> None:
        for line in range(16):
            self.tiles[tile, line] = np.frombuffer((ctypes.c_uint8 * 64).from_address(place + line * stride), np.uint8)

    def tilestored64(self, tile: int, place: int, stride: int) -> None:
        for line in range(16):
            ctypes.memmove(place + line * stride, self.tiles[tile, line].tobytes(), 64)

    def tdpbf16ps(self, sums: int, rows: int, entries: int) -> None:
        left, right = (widened(self.tiles[tile].view(np.uint16)).reshape(16, 16, 2) for tile in (rows, entries))
        self.tiles[sums].view(np.float32)[:] += np.einsum("mkp,knp->mn", left, right, dtype=np.float32)


def widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)


_REGISTERS = Registers()
_TYPES: dict[str, list[Any]] = {
    "tilezero": [],
    "tileloadd64": [ctypes.c_void_p, ctypes.c_int64],
    "tilestored64": [ctypes.c_void_p, ctypes.c_int64],
    "tdpbf16ps": [ctypes.c_int8] * 2,
}
_PLAYED = {name: ctypes.CFUNCTYPE(None, ctypes.c_int8, *types)(getattr(_REGISTERS, name)) for name, types in _TYPES.items()}


@cache
def played(terms: Terms) -> tuple[Any, Callable[..., None]]:
    """The function with calls in place of the instructions, and what keeps it alive."""
    for name, function in _PLAYED.items():
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address
        binding.add_symbol(f"played.{name}", address)
    module = binding.parse_assembly(code(terms).replace("llvm.x86.", "played."))
    engine = binding.create_mcjit_compiler(module, binding.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3, ctypes.c_void_p)
    return engine, signature(engine.get_function_address("tile"))


@each_terms
@given(
    width=st.integers(1, 100),
    rows=st.integers(1, SIZE),
    entries=st.integers(1, SIZE),
    gap=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_a_tile_is_a_product(terms: Terms, width: int, rows: int, entries: int, gap: int, seed: int) -> None:
    """Of 32 rows and 32 entries, fewer filled up with zeros, of any width, put anywhere into a wider matrix."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(count, width, generator=generator) for count in (rows, entries))
    right = right.to(TYPES[terms])
    places = [lay_out(left, terms.rows, paired=False), lay_out(right, terms.entries, paired=True)]
    out = np.full((SIZE, SIZE + gap), 7.0, np.float32)
    steps = -(-width // 32)
    played(terms)[1](places[0].ctypes.data, places[1].ctypes.data, out.ctypes.data, 0, steps, 4 * (SIZE + gap), 0)
    exact = left.double() @ right.double().T
    np.testing.assert_allclose(out[:rows, :entries], exact, rtol=0, atol=2e-6 * width**0.5)
    assert not out[rows:, :SIZE].any()
    assert not out[:, entries:SIZE].any()
    assert (out[:, SIZE:] == 7).all()


@each_terms
def test_steps_from_and_to_anywhere(terms: Terms) -> None:
    """Some steps of a width give the products of their part of it."""
    left, right = (torch.randn(SIZE, 5 * 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    right = right.to(TYPES[terms])
    places = [lay_out(left, terms.rows, paired=False), lay_out(right, terms.entries, paired=True)]
    out = np.empty((SIZE, SIZE), np.float32)
    played(terms)[1](places[0].ctypes.data, places[1].ctypes.data, out.ctypes.data, 1, 4, 4 * SIZE, 0)
    part = slice(32, 4 * 32)
    np.testing.assert_allclose(out, left[:, part].double() @ right[:, part].double().T, rtol=0, atol=2e-5)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_three_terms_are_the_number(number: float) -> None:
    """Nothing of a float32 number is lost, unless it is all but infinite or its last bits are smaller than any number.

    The first is the nearest there is, so that products of later terms, some of which are left out, are as small as they can be.
    """
    found = widened(lay_out(torch.tensor([[number]]), 3, paired=False)).reshape(3, 2, 16, 32)
    assert not found[:, 1].any()
    assert found[0, 0, 0, 0] == float(torch.tensor(number).bfloat16())
    if 2.0**-100 < abs(number) < 2.0**127 or number == 0:
        assert found[:, 0, 0, 0].astype(np.float64).sum() == number


@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_two_terms_are_a_float16_number(number: float) -> None:
    """The smallest too."""
    found = widened(lay_out(torch.tensor([[number]], dtype=torch.float16), 2, paired=False)).reshape(2, 2, 16, 32)
    assert found[:, 0, 0, 0].sum() == number


@each_terms
def test_a_step_multiplies_every_pair(terms: Terms) -> None:
    """Each pair of terms of each pair of tiles once, with what the registers hold by then, and few loads."""
    held: dict[tuple[int, int], int] = {}
    multiplied, loads = [], 0
    for name, *which in schedule(terms.pairs):
        if name == "load":
            held[which[0], which[1]] = which[2]
            loads += 1
        else:
            multiplied.append((held[0, which[0]], held[1, which[1]], *which))
    assert sorted(multiplied) == sorted((*pair, *tiles) for pair in terms.pairs for tiles in product(range(TILES), repeat=2))
    assert loads == LOADS[terms]


@each_terms
def test_sums_stay_in_registers(terms: Terms) -> None:
    """Compiled for such a processor, the loop loads, multiplies and fetches, and touches no other memory."""
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu="sapphirerapids", opt=3)
    blocks = re.split(r"\n\.L", target.emit_assembly(binding.parse_assembly(code(terms))))
    loop = max(blocks, key=lambda block: block.count("tdpbf16ps"))
    assert loop.count("tdpbf16ps") == 4 * len(terms.pairs)
    assert loop.count("tileloadd") == LOADS[terms]
    assert loop.count("prefetcht0") == 32 * (terms.rows + terms.entries)
    assert "tilestored" not in loop
    assert "rsp" not in loop
