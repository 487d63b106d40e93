"""The innermost loop of a product: a tile of rows by entries that stays in the processor's registers, written for LLVM.

Each step takes one number of every row and one of every entry and adds their products, each by one fused multiplication and
addition (Goto & van de Geijn 2008, doi:10.1145/1356052.1356053). Numba's own loops do not keep such a tile in registers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
#: Steps of the innermost loop before it looks whether it is done.
_UNROLLED = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a tile is.

    Attributes:
        rows, entries: of the tile.
        lanes: floats of a register, a divisor of ``entries``.
    """

    rows: int
    entries: int
    lanes: int


#: Sums in 12 of 16 registers of 256 bits, or in 24 of 32 of 512; the others hold what is multiplied.
NARROW, WIDE = Shape(6, 16, 8), Shape(12, 32, 16)


def register_tile(shape: Shape) -> Callable[..., None]:
    """A function, for compiled code only, that multiplies one tile.

    It takes ``left`` [D * rows], ``right`` [D * entries], the first d and the one behind the last, ``out``, the place in
    ``out`` where the tile begins and the distance between its rows there. The sum over d of
    ``left[d * rows + i] * right[d * entries + j]`` is added to what its place of row i and entry j holds, or takes that place
    if the first d is 0. The sum of each is made in the order of d, whatever the shape, so every shape gives the same bits.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(_context: Any, left: Any, right: Any, start: Any, stop: Any, out: Any, at: Any, stride: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            left, right, out = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 4))
            _, _, start, stop, _, at, stride = args
            code = _Code(builder, shape, left, right)
            sums = [code.zero] * (shape.rows * shape.entries // shape.lanes)
            done, sums = code.loop(start, stop, _UNROLLED, sums)
            _, sums = code.loop(done, stop, 1, sums)
            code.store(sums, builder.gep(out, [at]), stride, builder.icmp_signed("==", start, _LONG(0)))
            return context.get_dummy_value()

        return types.void(left, right, start, stop, out, at, stride), build

    return tile  # type: ignore[no-any-return]


class _Code:
    """What a tile consists of.

    Args:
        builder: of llvmlite.
        shape: of the tile.
        left, right: pointers to what is multiplied.
    """

    def __init__(self, builder: Any, shape: Shape, left: Any, right: Any) -> None:
        self.vector = ir.VectorType(_FLOAT, shape.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * shape.lanes)
        self._builder, self._shape, self._left, self._right = builder, shape, left, right
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{shape.lanes}f32")

    def loop(self, start: Any, stop: Any, steps: int, sums: list[Any]) -> tuple[Any, list[Any]]:
        """Add the products from ``start`` on as long as ``steps`` of them are left; where it ended, and the sums."""
        builder = self._builder
        before = builder.basic_block
        head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        place, held = builder.phi(_LONG), [builder.phi(self.vector) for _ in sums]
        following = builder.add(place, _LONG(steps))
        builder.cbranch(builder.icmp_signed("<=", following, stop), body, after)
        builder.position_at_end(body)
        added = held
        for step in range(steps):
            added = self._add(builder.add(place, _LONG(step)), added)
        builder.branch(head)
        for phi, first, again in zip([place, *held], [start, *sums], [following, *added], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(again, body)
        builder.position_at_end(after)
        return place, held

    def _add(self, place: Any, sums: list[Any]) -> list[Any]:
        """The sums and the products of one step."""
        builder, shape = self._builder, self._shape
        entries = builder.gep(self._right, [builder.mul(place, _LONG(shape.entries))])
        vectors = [self._load(self._vector_at(entries, _LONG(first))) for first in range(0, shape.entries, shape.lanes)]
        rows = builder.gep(self._left, [builder.mul(place, _LONG(shape.rows))])
        added, held = [], iter(sums)
        for row in range(shape.rows):  # one by one, so that no register holds a number before it is needed
            number = self._spread(self._load(builder.gep(rows, [_LONG(row)])))
            added += [builder.call(self._fma, [number, vector, next(held)]) for vector in vectors]
        return added

    def store(self, sums: list[Any], out: Any, stride: Any, first: Any) -> None:
        """Add the sums to what their places hold, from ``out`` on; if they are the first, put them there."""
        vectors = self._shape.entries // self._shape.lanes
        for number, held in enumerate(sums):
            row, vector = divmod(number, vectors)
            place = self._builder.add(self._builder.mul(stride, _LONG(row)), _LONG(vector * self._shape.lanes))
            pointer = self._vector_at(out, place)
            before = self._builder.select(first, self.zero, self._load(pointer))
            self._builder.store(self._builder.fadd(before, held), pointer, align=4)

    def _vector_at(self, pointer: Any, place: Any) -> Any:
        return self._builder.bitcast(self._builder.gep(pointer, [place]), self.vector.as_pointer())

    def _load(self, pointer: Any) -> Any:
        return self._builder.load(pointer, align=4)

    def _spread(self, number: Any) -> Any:
        """A register that holds the number in each of its lanes."""
        lanes = self._shape.lanes
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self._builder.insert_element(undefined, number, _INT(0))
        return self._builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))
