"""Exact top-k with ties broken by the lower id, and the statistics of a softmax, block by block over the vocabulary.

This is the plain float32 form that every faster path is tested against.
Shapes: N rows, V vocabulary, B columns of a block, K tokens kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raylens.workers.asked import Tally, nothing_asked

_LOWEST = torch.finfo(torch.float32).min
#: A logit this far below the largest has weight 0 in float32, and 0 times it is 0, which 0 times infinity is not.
_NOTHING = -1e4


def topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of [N, V], best first; equal values by ascending index. Returns values and indices [N, k].

    torch.topk leaves the order of equal values open, inside the k and at their edge, so both are settled here. Rows with
    NaN have no order; they are for the caller to find.
    """
    columns = values.shape[1]
    if k >= columns:
        return _sorted(values, columns)
    top, index = torch.topk(values, k + 1, dim=1)
    tied_edge = top[:, k - 1] == top[:, k]
    top, index = _order_ties(top[:, :k], index[:, :k])
    if bool(tied_edge.any()):  # rare in float32: settle the few rows by a stable sort of the whole row
        rows = tied_edge.nonzero().squeeze(1)
        top[rows], index[rows] = _sorted(values[rows], k)
    return top, index


def _sorted(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ordered, index = torch.sort(values, dim=1, descending=True, stable=True)
    return ordered[:, :k], index[:, :k]


def _order_ties(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    index, by_index = torch.sort(index, dim=1)
    values, by_value = torch.sort(values.gather(1, by_index), dim=1, descending=True, stable=True)
    return values, index.gather(1, by_value)


class Readout(NamedTuple):
    """What one pass over the logits of N rows leaves, M targets that were asked about (asked.py) among it.

    Attributes:
        ids: [N, K] int64 token ids, best first.
        logprobs: [N, K] float32, natural logarithm, at most 0.
        logsumexp: [N] float32, of all logits of the row.
        entropy: [N] float32, in nats.
        target_logprobs: [N, M] float32.
        target_ranks: [N, M] int64, 1 for the most probable token; equal logits are ordered by id.
        kl: [N] float32, KL(final || row) in nats; NaN where it was not asked.
    """

    ids: Tensor
    logprobs: Tensor
    logsumexp: Tensor
    entropy: Tensor
    target_logprobs: Tensor
    target_ranks: Tensor
    kl: Tensor

    def split(self, rows: int) -> list["Readout"]:
        """Read-outs of that many rows each."""
        return [Readout(*parts) for parts in zip(*(torch.split(value, rows) for value in self), strict=True)]


def joined(parts: Sequence[Readout]) -> Readout:
    """The read-outs of some rows after others as one."""
    return Readout(*(torch.cat(values) for values in zip(*parts, strict=True)))


def finished(values: Tensor, ids: Tensor, maximum: Tensor, total: Tensor, weighted: Tensor, tally: Tally) -> Readout:
    """The Readout of N rows, once all their logits are in.

    Args:
        values, ids: [N, K] the best logits, float32, and their tokens.
        maximum: [N] float64, less which logits were summed.
        total, weighted: [N] float64, the sums of exp(logit - maximum), and of (logit - maximum) times that.
        tally: of what is asked beyond the best tokens; it is completed.
    """
    log_sum = torch.log(total)
    logsumexp = maximum + log_sum
    logprobs = (values.double() - logsumexp.unsqueeze(1)).clamp(max=0.0).float()
    entropy = (log_sum - weighted / total).clamp(min=0.0)
    return Readout(ids, logprobs, logsumexp.float(), entropy.float(), *tally.finish(ids, logprobs, logsumexp))


class RunningReadout:
    """Gathers a Readout from blocks of logits in ascending order of ids; no more than one block is ever held.

    A block is summed in float32, blocks in float64, relative to a running maximum (online softmax, Milakov & Gimelshein
    2018, arXiv:1805.02867). Logits of minus infinity are tokens of probability 0.
    """

    def __init__(self, rows: int, k: int, device: torch.device, tally: Tally | None = None) -> None:
        self._k = k
        self._tally = nothing_asked(rows, device) if tally is None else tally
        self._first = 0
        self._values = torch.empty(rows, 0, device=device)
        self._ids = torch.empty(rows, 0, dtype=torch.int64, device=device)
        # the lowest finite number, not minus infinity, whose difference from itself is not a number
        self._maximum = torch.full((rows,), _LOWEST, dtype=torch.float64, device=device)
        self._sum = torch.zeros(rows, dtype=torch.float64, device=device)  # of exp(logit - maximum)
        self._weighted = torch.zeros_like(self._sum)  # of (logit - maximum) * exp(logit - maximum)

    def add(self, logits: Tensor, weights: Tensor | None = None) -> None:
        """Take in the next block, [N, B] float32, and what the tally makes of the final layer's logits of that block."""
        self._tally.add(logits, self._first, weights)
        values, index = topk(logits, min(self._k, logits.shape[1]))
        # kept ids are lower than the block's and both are in order, so a stable sort keeps ties in order
        kept, order = torch.sort(torch.cat([self._values, values], dim=1), dim=1, descending=True, stable=True)
        ids = torch.cat([self._ids, index + self._first], dim=1)
        self._values, self._ids = kept[:, : self._k], ids.gather(1, order)[:, : self._k]
        self._first += logits.shape[1]

        maximum = torch.maximum(self._maximum, values[:, 0].double())
        fall = self._maximum - maximum
        scale = torch.exp(fall)
        below = (logits - maximum.float().unsqueeze(1)).clamp_(min=_NOTHING)
        weights = torch.exp(below)
        self._weighted = scale * (self._weighted + fall * self._sum) + torch.linalg.vecdot(weights, below).double()
        self._sum = self._sum * scale + weights.sum(dim=1).double()
        self._maximum = maximum

    def finish(self) -> Readout:
        """The result, once all blocks are in."""
        return finished(self._values, self._ids, self._maximum, self._sum, self._weighted, self._tally)


def readout(logits: Tensor, k: int) -> Readout:
    """The Readout of whole logits, [N, V] float32."""
    running = RunningReadout(logits.shape[0], k, logits.device)
    running.add(logits)
    return running.finish()
