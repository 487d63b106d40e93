"""The innermost loop of a product on processors that multiply whole tiles of bfloat16 (Intel AMX), written for LLVM.

A tile is a register of 16 rows of 64 bytes. One instruction adds to 16 x 16 float32 sums the products of 16 rows with 16 entries
over 32 numbers of the width (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS). A float32
number is the sum of three of bfloat16, so six such products are one of float32 numbers (Henry, Tang & Heinecke 2019,
arXiv:1904.06376). One of float16 is the sum of two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTE, _INT, _LONG, _POINTER = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
#: Rows of a tile, as many entries, and numbers of the width that it holds of each.
EDGE, DEPTH = 16, 32
#: Tiles of rows that are multiplied with as many tiles of entries, all with all: the sums take four registers of eight.
TILES = 2
#: Bytes of a tile's row, and of a tile.
_LINE = 64
TILE = EDGE * _LINE
_REGISTERS = 8
#: LLVM's names for how near a line is fetched: to the first cache, to the second.
_FIRST, _SECOND = 3, 2


@dataclass(frozen=True, slots=True)
class Terms:
    """What is added up in place of one product of two numbers.

    Attributes:
        rows, entries: how many terms, the largest first, the number of a row and of an entry is the sum of.
        pairs: which of them are multiplied, in an order in which few tiles have to be read again.
    """

    rows: int
    entries: int
    pairs: tuple[tuple[int, int], ...]


#: Of float32, float16 and bfloat16 entries. Left out is what is no larger than the rounding of a float32 product.
LONG = Terms(3, 3, ((0, 2), (0, 0), (0, 1), (1, 1), (1, 0), (2, 0)))
MIDDLE = Terms(3, 2, ((2, 0), (1, 0), (0, 0), (0, 1), (1, 1)))
SHORT = Terms(3, 1, ((2, 0), (1, 0), (0, 0)))


def matrix_tile(terms: Terms) -> Callable[..., None]:
    """A function, for compiled code only, that multiplies 32 rows with 32 entries.

    It takes ``left``, ``right`` and ``out``, each followed by the place in it where to begin; the first step of the width and the
    one behind the last; the distance between rows of ``out``, where the sums are put; and a place in ``right`` from which on it
    fetches what comes next into the cache, a tile at each step.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        _context: Any,
        left: Any,
        row: Any,
        right: Any,
        entry: Any,
        out: Any,
        at: Any,
        first: Any,
        stop: Any,
        stride: Any,
        ahead: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(array: int, place: int) -> Any:
                data = context.make_array(signature.args[array])(context, builder, args[array]).data
                return builder.bitcast(builder.gep(data, [args[place]]), _POINTER)

            code = MatrixTile(builder, terms, pointer(0, 1), pointer(2, 3), pointer(4, 5), builder.mul(args[8], _LONG(4)))
            code.build(args[6], args[7], pointer(2, 9))
            return context.get_dummy_value()

        return types.void(left, row, right, entry, out, at, first, stop, stride, ahead), build

    return tile  # type: ignore[no-any-return]


class MatrixTile:
    """What such a function consists of.

    Args:
        builder: of llvmlite.
        terms: that are multiplied.
        left, right: pointers to the rows and the entries of step 0: of each step the tiles of its first term, then of the next.
        out: pointer to the first sum.
        stride: bytes between rows of sums.
    """

    def __init__(self, builder: Any, terms: Terms, left: Any, right: Any, out: Any, stride: Any) -> None:
        self._builder, self._terms, self._sides, self._out, self._stride = builder, terms, (left, right), out, stride

    def build(self, first: Any, stop: Any, ahead: Any) -> None:
        """The sums of steps from ``first`` to ``stop``, while a tile at each of them is fetched from ``ahead`` on."""
        corners = range(TILES * TILES)
        for number in corners:
            self._call("tilezero", _BYTE(number))
        with cgutils.for_range_slice(self._builder, first, stop, _LONG(1), intp=_LONG) as (step, _):
            self._add(step, ahead)
        for number in corners:
            row, entry = divmod(number, TILES)
            place = self._builder.add(self._builder.mul(self._stride, _LONG(EDGE * row)), _LONG(_LINE * entry))
            self._call("tilestored64", _BYTE(number), self._builder.gep(self._out, [place]), self._stride)

    def _add(self, step: Any, ahead: Any) -> None:
        """The products of one step, between which what is needed later is fetched, so that neither waits for the other."""
        counts = (self._terms.rows, self._terms.entries)
        following = self._builder.add(step, _LONG(1))
        tiles = [(self._tile(ahead, step, counts[1], 0), _SECOND)]
        for side, count in enumerate(counts):
            tiles += [(self._tile(self._sides[side], following, count, number), _FIRST) for number in range(count * TILES)]
        lines = [(self._builder.gep(tile, [_LONG(line)]), cache) for tile, cache in tiles for line in range(0, TILE, _LINE)]
        order = schedule(self._terms.pairs)
        for number, (name, *which) in enumerate(order):
            for line in lines[len(lines) * number // len(order) : len(lines) * (number + 1) // len(order)]:
                self._fetch(*line)
            if name == "load":
                side, place, term = which
                tile = self._tile(self._sides[side], step, counts[side], term * TILES + place)
                self._call("tileloadd64", _factor(side, place), tile, _LONG(_LINE))
            else:
                row, entry = which
                self._call("tdpbf16ps", _BYTE(row * TILES + entry), _factor(0, row), _factor(1, entry))

    def _tile(self, pointer: Any, step: Any, terms: int, number: int) -> Any:
        """A pointer to a tile of a step of so many terms."""
        start = self._builder.mul(step, _LONG(terms * TILES * TILE))
        return self._builder.gep(pointer, [self._builder.add(start, _LONG(number * TILE))])

    def _fetch(self, pointer: Any, cache: int) -> None:
        """Ask for a line to be brought to a cache; it may lie anywhere."""
        signature = ir.FunctionType(ir.VoidType(), [_POINTER, _INT, _INT, _INT])
        prefetch = cgutils.get_or_insert_function(self._builder.module, signature, "llvm.prefetch.p0")
        self._builder.call(prefetch, [pointer, _INT(0), _INT(cache), _INT(1)])

    def _call(self, name: str, *args: Any) -> None:
        _instruction(self._builder, name, args)


def schedule(pairs: Sequence[tuple[int, int]]) -> list[tuple[Any, ...]]:
    """One step, in order: ("load", side, tile of that side, term) and ("multiply", tile of rows, tile of entries).

    A register gets its next tile as soon as the last product of the one in it has begun, so that loads hide behind products.
    """
    products = [(pair, corner) for number, pair in enumerate(pairs) for corner in _corners(pair, pairs[number + 1 :])]
    order: list[tuple[Any, ...]] = []
    held: dict[tuple[int, int], int] = {}

    def load(side: int, place: int, term: int) -> None:
        if held.get((side, place)) != term:
            held[side, place] = term
            order.append(("load", side, place, term))

    for number, (pair, corner) in enumerate(products):
        for side in (0, 1):
            load(side, corner[side], pair[side])
        order.append(("multiply", *corner))
        for side in (0, 1):
            load(side, corner[side], next((p[side] for p, c in products[number + 1 :] if c[side] == corner[side]), pair[side]))
    return order


def _corners(pair: tuple[int, int], following: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(tile of rows, tile of entries) of the products of one pair: the tiles that the next pair replaces are done one by one."""
    corners = list(product(range(TILES), range(TILES)))
    by_rows = not following or following[0][0] != pair[0]
    return corners if by_rows else [(row, entry) for entry, row in corners]


def _factor(side: int, number: int) -> Any:
    """The register of a tile of rows (side 0) or of entries."""
    return _BYTE(TILES * TILES + side * TILES + number)


@intrinsic  # type: ignore[untyped-decorator]
def open_tiles(_context: Any) -> Any:
    """Set all registers of the thread up as whole tiles, for compiled code only."""

    def build(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        lines = [_LINE, 0] * _REGISTERS  # two bytes each, the lower first
        layout = bytes([1, *[0] * 15, *lines, *[0] * 16, *[EDGE] * _REGISTERS, *[0] * 8])
        constant = cgutils.global_constant(builder, "tile_layout", cgutils.make_bytearray(layout))
        _instruction(builder, "ldtilecfg", [builder.bitcast(constant, _POINTER)])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic  # type: ignore[untyped-decorator]
def close_tiles(_context: Any) -> Any:
    """Give them back, for compiled code only: a thread with tiles in use has more to be kept when it is interrupted."""

    def build(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        _instruction(builder, "tilerelease", [])
        return context.get_dummy_value()

    return types.void(), build


def _instruction(builder: Any, name: str, args: Sequence[Any]) -> None:
    signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in args])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), args)
