"""What may be asked of rows beyond their best tokens: how given tokens stand, and how far they are from the final prediction.

Both come out of the same pass over the logits: of each block the logits above a target's are counted, and the final layer's
probabilities are multiplied with the logits. Shapes: N rows, M targets, T tokens of the prompts, B columns of a block.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Final:
    """The model's own prediction for T tokens.

    Attributes:
        rows: [T, D] the last block's output.
        logsumexp, entropy: [T] of its read-out.
    """

    rows: Tensor
    logsumexp: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of N rows.

    Attributes:
        targets: [N, M] int64, ids whose logprob and rank are wanted.
        token: [N] int64, which token of ``final`` each row is of; ascending.
        final: None where no distance is asked.
        taps: those of which it is asked, None for all; what is answered of others may be any number.
    """

    targets: Tensor
    token: Tensor
    final: Final | None
    taps: frozenset[str] | None = None

    @staticmethod
    def of_tokens(targets: Tensor, final: Final | None, taps: frozenset[str] | None = None) -> "Asked":
        """One row a token."""
        return Asked(targets, torch.arange(len(targets)), final, taps)

    def about(self, tap: str) -> bool:
        """Whether it is asked of a tap."""
        return self.taps is None or tap in self.taps

    def repeated(self, places: int) -> "Asked":
        """For rows that are ``places`` of each token in turn."""
        return replace(
            self, targets=self.targets.repeat_interleave(places, dim=0), token=self.token.repeat_interleave(places, dim=0)
        )

    def parts(self, tokens: int) -> list[slice]:
        """The rows in parts of so many tokens."""
        sizes = torch.unique_consecutive(self.token // tokens, return_counts=True)[1].tolist()
        edges = [0, *itertools.accumulate(sizes)]
        return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    def part(self, rows: slice) -> "Asked":
        """For some of the rows; only the tokens they are of remain."""
        token = self.token[rows]
        if self.final is None or not len(token):
            return replace(self, targets=self.targets[rows], token=token)
        first, stop = int(token[0]), int(token[-1]) + 1
        final = Final(self.final.rows[first:stop], self.final.logsumexp[first:stop], self.final.entropy[first:stop])
        return Asked(self.targets[rows], token - first, final, self.taps)


class Tally:
    """Counts and sums for what is asked of N rows, while blocks of logits go by in ascending order of ids.

    KL(f || p) = sum f log f - sum f z + logsumexp(z): only the middle sum needs the pass.

    Args:
        asked: of the rows.
        logits: [N, M] float32, of the targets.
    """

    def __init__(self, asked: Asked, logits: Tensor) -> None:
        device = logits.device
        self.targets = asked.targets.to(device)
        self.token = asked.token.to(device)
        self.logits = logits
        self.above = torch.zeros(logits.shape, dtype=torch.int64, device=device)
        self.cross = torch.zeros(len(logits), dtype=torch.float64, device=device)
        self._final = asked.final
        self._mass = torch.zeros(len(asked.final.rows) if asked.final else 0, dtype=torch.float64, device=device)

    def weights(self, final_logits: Tensor) -> Tensor | None:
        """[T, B] probabilities from the final layer's logits of a block, in place; None where no distance is asked."""
        if self._final is None:
            return None
        weights = final_logits.sub_(self._final.logsumexp.to(final_logits.device).unsqueeze(1)).exp_()
        self._mass += weights.sum(dim=1)
        return weights

    def arrays(self) -> tuple[Any, ...]:
        """What the kernel reads and writes: targets, their logits, counts, tokens, sums."""
        return tuple(value.numpy() for value in (self.targets, self.logits, self.above, self.token, self.cross))

    def add(self, logits: Tensor, first: int, weights: Tensor | None) -> None:
        """Take in a block, [N, B], of tokens ``first`` and up: the plain form of kernels/asked.py."""
        ids = torch.arange(first, first + logits.shape[1], device=logits.device)
        for m in range(self.targets.shape[1]):
            target, value = self.targets[:, m : m + 1], self.logits[:, m : m + 1]
            before = torch.where(ids < target, logits >= value, logits > value) & (ids != target)
            self.above[:, m] += before.sum(dim=1)
        if weights is not None:
            share = weights[self.token]
            # a token of probability 0 adds nothing, also where its logit is minus infinity
            self.cross += torch.where(share > 0, share * logits, 0.0).sum(dim=1)

    def finish(self, ids: Tensor, logprobs: Tensor, logsumexp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logprobs and ranks of the targets, and KL, as a Readout has them.

        Args:
            ids, logprobs: [N, K] the rows' best tokens.
            logsumexp: [N] float64.
        """
        k = ids.shape[1]
        found = (self.logits.double() - logsumexp.unsqueeze(1)).clamp(max=0.0).float()
        ranks = (self.above + 1).clamp(min=k + 1)
        hits = ids.unsqueeze(1) == self.targets.unsqueeze(2)  # [N, M, K]
        best, place = hits.any(dim=2), hits.view(torch.uint8).argmax(dim=2)
        # one place in the list, one rank: another product may round a logit to the other side of its neighbour
        ranks = torch.where(best, place + 1, ranks)
        found = torch.where(best, logprobs.gather(1, place), found)
        return found, ranks, self._kl(logsumexp)

    def _kl(self, logsumexp: Tensor) -> Tensor:
        if self._final is None:
            return torch.full(logsumexp.shape, torch.nan, device=logsumexp.device)
        # the probabilities sum to 1 but for the rounding of their logsumexp, which division takes out again
        cross = self.cross / self._mass[self.token]
        entropy = self._final.entropy.to(logsumexp.device)[self.token].double()
        return (logsumexp - cross - entropy).clamp(min=0.0).float()


def nothing_asked(rows: int, device: torch.device) -> Tally:
    """For rows of which only the best tokens are wanted."""
    none = torch.empty(rows, 0, device=device)
    return Tally(Asked(none.long(), torch.zeros(rows, dtype=torch.int64), None), none)
