"""The unembedding as a product of our own reads it, and the rows that it is multiplied with.

Shapes: N rows, V entries, D width, B entries of a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor


@dataclass(slots=True)  # not frozen: benchmarks put a clock around what multiplies
class Kernel:
    """A product on one core, of copies of both factors that lie as its innermost loop reads them.

    Attributes:
        name: of the way it goes, for the certificate.
        rows, entries: that one panel holds.
        most_rows: that are best multiplied at once.
        lay_out_rows, lay_out_entries: from [N, D] float32 and [V, D] float32, float16 or bfloat16, on the CPU, panels one after
            the other, zeros filling up the last.
        multiply: puts all products of panels of rows and of entries into its third argument, [N, V] contiguous float32, both
            filled up as the panels are.
    """

    name: str
    rows: int
    entries: int
    most_rows: int
    lay_out_rows: Callable[[Tensor], NDArray[Any]]
    lay_out_entries: Callable[[Tensor], NDArray[Any]]
    multiply: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], None]


class LaidOut:
    """A matrix of [V, D] float32, float16 or bfloat16 entries, laid out once for many products.

    Attributes:
        kernel: that multiplies.
        dtype: of the entries.
        nbytes: of the copy.
    """

    def __init__(self, entries: Tensor, kernel: Kernel) -> None:
        self.kernel, self.dtype = kernel, entries.dtype
        self._count = len(entries)
        self._panels = kernel.lay_out_entries(entries)
        self.nbytes = self._panels.nbytes

    def blocks(self, rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
        """The first entry of each block, and [N, B] products of [N, D] float32 rows with it, good until the next is asked for.

        Args:
            rows: on the CPU.
            size: entries of a block; as many panels are taken as hold them.
        """
        kernel = self.kernel
        left = kernel.lay_out_rows(rows)
        high, step = len(left) * kernel.rows, min(-(-size // kernel.entries), len(self._panels))
        memory = rows.new_empty(high * step * kernel.entries)  # one for all blocks
        for first in range(0, len(self._panels), step):
            right, start = self._panels[first : first + step], first * kernel.entries
            width = len(right) * kernel.entries
            out = memory[: high * width].view(high, width)
            kernel.multiply(left, right, out.numpy())
            yield start, out[: len(rows), : self._count - start].contiguous()
