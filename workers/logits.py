"""Logits of hidden rows after the final norm, in float32, block by block of the vocabulary.

Shapes: N rows, D width, V vocabulary, B entries of a block, M targets.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylens.workers.after_head import AfterHead
from raylens.workers.blocks import dtype_of
from raylens.workers.product import Unembedding


class Logits(Protocol):
    """The logits of N rows.

    Attributes:
        rows: [N, D] after the norm.
    """

    rows: Tensor

    def blocks(self, size: int) -> Iterator[Tensor]:
        """[N, B] of each block in turn; each is good until the next is asked for."""
        ...

    def of(self, targets: Tensor) -> Tensor:
        """[n, M] of the tokens in [n, M] int64, for the first n rows."""
        ...


class SlicedLogits:
    """By a plain linear head, from its weights where they are; no more than one block is ever held.

    Args:
        rows: [N, D] float32, after the norm, on the head's device.
        unembedding: the output embedding, its weights in memory.
        step: what follows it.
    """

    def __init__(self, rows: Tensor, unembedding: Unembedding, step: AfterHead) -> None:
        self.rows = rows
        self._unembedding = unembedding
        self._weight, self._bias = unembedding.head.weight, unembedding.head.bias
        self._step = step

    def blocks(self, size: int) -> Iterator[Tensor]:
        """See Logits."""
        for start, logits in self._unembedding.blocks(self.rows, size):
            if isinstance(self._bias, Tensor):
                logits += self._bias[start : start + logits.shape[1]].float()
            yield self._step(logits)

    def of(self, targets: Tensor) -> Tensor:
        """See Logits."""
        ids, place = torch.unique(targets.to(self._weight.device), return_inverse=True)
        bias = self._bias[ids].float() if isinstance(self._bias, Tensor) else None
        return self._step(F.linear(self.rows[: len(targets)], self._weight[ids].float(), bias)).gather(1, place)


class WholeLogits:
    """By any other head, such as a quantised one, which is called once for the whole vocabulary.

    Args:
        rows: [N, D], after the norm, on the head's device.
        head: the output embedding.
        step: what follows it.
    """

    def __init__(self, rows: Tensor, head: nn.Module, step: AfterHead) -> None:
        self.rows = rows
        self._logits: Tensor = head(rows.to(dtype_of(head, rows.dtype)))
        self._step = step

    def blocks(self, size: int) -> Iterator[Tensor]:
        """See Logits."""
        for block in torch.split(self._logits, size, dim=1):
            yield self._step(block.float())

    def of(self, targets: Tensor) -> Tensor:
        """See Logits."""
        return self._step(self._logits[: len(targets)].gather(1, targets.to(self._logits.device)).float())
