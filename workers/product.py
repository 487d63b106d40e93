"""Products of hidden rows with a plain linear head, block by block of the vocabulary, in float32.

Shapes: N rows, D width, V vocabulary, B entries of a block.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from raylens.workers.blocks import device_of
from raylens.workers.terms import SHORT, split_terms
from raylens.workers.threads import FEWEST_ROWS

#: Entries of a block that is laid out for oneDNN: with 512 rows its logits stay in the cache.
ENTRIES = 1024
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
        packed: whether products are oneDNN's, on a copy of the weight laid out for it.
        terms: whether a short weight is multiplied as it is, by two terms of each row (terms.py), instead of being widened.
    """

    def __init__(self, head: nn.Linear) -> None:
        self.head = head
        self.terms = False
        self._packed: list[Tensor] = []

    @property
    def packed(self) -> bool:
        """See the class."""
        return bool(self._packed)

    def blocks(self, rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
        """The first entry of each block, and [N, B] products with it, which are good until the next is asked for.

        Args:
            rows: [N, D] float32, on the head's device.
            size: B, where the weight is not laid out in blocks of its own.
        """
        if self._packed and len(rows) >= FEWEST_ROWS:
            for number, block in enumerate(self._packed):
                yield number * ENTRIES, packed_product(rows, block)
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

    def try_faster(self, rows: Tensor) -> None:
        """Take a faster product where there is one for the weight's type and device, and it is found to be right.

        Args:
            rows: [N, D] float32 normed rows to try it on.
        """
        weight = self.head.weight
        if weight.is_cuda and weight.dtype in SHORT:
            self._try_terms(rows)
        elif weight.dtype == torch.float32 and not weight.is_meta and device_of(self.head, weight.device).type == "cpu":
            self._try_packed(rows)

    def _try_terms(self, rows: Tensor) -> None:
        block = self.head.weight[:ENTRIES]
        found = rows.new_empty(len(rows), len(block))
        try:  # torch before 2.8 has no product of short types that comes out in float32
            terms_product(*split_terms(rows, block.dtype), block, found)
        except (RuntimeError, TypeError):
            return
        self.terms = _right(found, rows, block)

    def _try_packed(self, rows: Tensor) -> None:
        """Lay a float32 weight out for oneDNN where that is known to be faster and is found to be right.

        The copy takes as much memory as the weight. Which way is taken does not depend on a clock, so that the same machine
        gives the same numbers every time. Faster than ``torch.mm`` by a tenth on AMD's processors with AVX-512
        (docs/decisions/0007); others keep ``torch.mm``.
        """
        weight = self.head.weight
        if torch.backends.cpu.get_cpu_capability() != "AVX512" or vendor() != "AuthenticAMD":
            return
        try:  # operators of torch's own compiler, which another version may lack or change
            packed = [_laid_out(block) for block in torch.split(weight, ENTRIES)]
            found = packed_product(rows, packed[0])
        except (AttributeError, RuntimeError, TypeError):
            return
        if _right(found, rows, weight[:ENTRIES]):
            self._packed = packed


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


def _laid_out(block: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(block.contiguous())
    return packed


def packed_product(rows: Tensor, block: Tensor) -> Tensor:
    """[N, B] products of [N, D] rows with a block that was laid out."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, block, None, "none", [], "")
    return product
