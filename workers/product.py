"""Products of hidden rows with a plain linear head, block by block of the vocabulary, in float32.

Shapes: N rows, D width, V vocabulary, B entries of a block.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from raylens.workers.blocks import device_of
from raylens.workers.running import is_compiled
from raylens.workers.terms import SHORT, split_terms

if TYPE_CHECKING:
    from raylens.workers.kernels.laid_out import Kernel, LaidOut

#: Types whose weights may be laid out for our own product.
OURS = (torch.float32, torch.float16, torch.bfloat16)
#: Rows below which a core of its own does not pay where torch multiplies: small products are far from a core's full speed.
FEWEST_ROWS = 64
#: Rows that torch multiplies at once in a thread.
MOST_ROWS = 512
#: Entries on which a faster product is tried.
TRIED = 1024
#: Largest difference from float64 of a product of normed rows, relative to the largest product.
ALLOWED = 1e-5


def is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a head is exactly a linear layer, which may be multiplied block by block; a subclass may compute anything."""
    return type(head) is nn.Linear and head.weight.is_floating_point()


class Unembedding:
    """The weight of a head, for products with it.

    Args:
        head: the output embedding; its weights are in memory while products are made.

    Attributes:
        laid_out: the weight as a product of our own reads it, where one is used.
        terms: whether a short weight is multiplied as it is, by two terms of each row (terms.py), instead of being widened.
    """

    def __init__(self, head: nn.Linear) -> None:
        self.head = head
        self.terms = False
        self.laid_out: LaidOut | None = None

    def workers(self, rows: int, shares: int) -> int:
        """How many threads take part in products, each with rows of its own: all that torch has, or one.

        One lets torch spread each product over all cores as it would by itself.

        Args:
            rows: that are multiplied.
            shares: in how many parts they may be divided at most.
        """
        threads = torch.get_num_threads()
        fewest = FEWEST_ROWS if self.laid_out is None else self.laid_out.kernel.rows
        return threads if rows >= threads * fewest and shares >= threads else 1

    @property
    def most_rows(self) -> int:
        """How many rows a thread is best given at once; with the block size this bounds its logits in memory to 16 MiB."""
        return MOST_ROWS if self.laid_out is None else self.laid_out.kernel.most_rows

    def blocks(self, rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
        """The first entry of each block, and [N, B] products with it, which are good until the next is asked for.

        Args:
            rows: [N, D] float32, on the head's device.
            size: B; laid out, as many panels as hold so many entries.
        """
        if self.laid_out is not None and torch.get_num_threads() == 1:  # torch divides a product among threads, ours does not
            yield from self.laid_out.blocks(rows, size)
            return
        weight = self.head.weight
        memory = rows.new_empty(len(rows) * min(size, len(weight)))  # one for all blocks
        split = split_terms(rows, weight.dtype) if self.terms else None
        for start in range(0, len(weight), size):
            part = weight[start : start + size]
            products = memory[: len(rows) * len(part)].view(len(rows), len(part))
            if split is None:
                torch.mm(rows, part.float().T, out=products)
            else:
                terms_product(*split, part, products)
            yield start, products

    def multiplier(self, entries: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes [N, B] products of [N, D] float32 rows with [B, D] other entries, as threads make those with the head's."""
        if self.laid_out is None:
            return lambda rows: rows @ entries.float().T
        from raylens.workers.kernels.laid_out import LaidOut

        laid_out = LaidOut(entries.to(self.laid_out.dtype), self.laid_out.kernel)
        return lambda rows: next(laid_out.blocks(rows, len(entries)))[1]

    def try_faster(self, rows: Tensor) -> None:
        """Take a faster product where there is one for the weight's type and device, and it is found to be right.

        Args:
            rows: [N, D] float32 normed rows to try it on.
        """
        weight = self.head.weight
        if weight.is_cuda and weight.dtype in SHORT:
            self._try_terms(rows)
        elif weight.dtype in OURS and not weight.is_meta and device_of(self.head, weight.device).type == "cpu":
            self._try_laid_out(rows)

    def _try_terms(self, rows: Tensor) -> None:
        block = self.head.weight[:TRIED]
        found = rows.new_empty(len(rows), len(block))
        try:  # not every GPU has a product of short types that comes out in float32
            terms_product(*split_terms(rows, block.dtype), block, found)
        except RuntimeError:
            return
        self.terms = _right(found, rows, block)

    def _try_laid_out(self, rows: Tensor) -> None:
        """Lay the weight out for a product of our own where there is one that was faster, if it is found to be right.

        The copy takes from half to twice the memory of the weight (shortest, docs/decisions/0024). Which way is taken does not
        depend on a clock, so that the same machine gives the same numbers every time (docs/decisions/0017).
        """
        if not is_compiled():
            return
        weight = shortest(self.head.weight.detach())
        few = weight[:TRIED]
        try:
            from raylens.workers.kernels.laid_out import LaidOut

            kernel = own_kernel()
            if kernel is None:
                return
            _, found = next(LaidOut(few, kernel).blocks(rows, len(few)))
        except Exception:  # noqa: BLE001  another version of the compiler may raise anything; the other path is there
            return
        if _right(found, rows, few):
            self.laid_out = LaidOut(weight, kernel)


def shortest(weight: Tensor) -> Tensor:
    """A float32 weight in a short type if it loses nothing by that, as one that was stored so and widened when it was loaded."""
    if weight.dtype == torch.float32:
        for short in (torch.bfloat16, torch.float16):
            if all(torch.equal(part.to(short).float(), part) for part in torch.split(weight, TRIED)):
                return weight.to(short)
    return weight


def own_kernel() -> "Kernel | None":
    """The product of our own that is known to be faster on this processor than ``torch.mm``, if there is one."""
    from raylens.workers.kernels import panels, tiles

    if tiles.may_use():
        return tiles.KERNEL
    return panels.KERNEL if panels.SUPPORTED and vendor() == "AuthenticAMD" else None


def vendor() -> str:
    """Who made the processor, as Linux names them; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(r"^vendor_id\s*:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else ""


def _right(found: Tensor, rows: Tensor, block: Tensor) -> bool:
    expected = rows.double() @ block.double().T
    return bool((found - expected).abs().max() <= ALLOWED * expected.abs().max())


def terms_product(first: Tensor, second: Tensor, factor: Tensor, block: Tensor, out: Tensor) -> None:
    """Put into [N, B] float32 the products of rows, as split_terms gives them, with a block of their type."""
    torch.mm(first, block.T, out_dtype=torch.float32, out=out)
    torch.addmm(out, second, block.T, out_dtype=torch.float32, out=out)
    out *= factor.unsqueeze(1)
