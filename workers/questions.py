"""What a lens asks about a batch beyond the best tokens, and its answers as the metrics that are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raylens.workers.asked import Asked, Final
from raylens.workers.metrics import METRICS, Found, metrics_of
from raylens.workers.readers import Read

_LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about each of N places.

    Attributes:
        asked: of the pass over the logits; the targets are M tracked tokens, then the prompt's next token if that is asked.
        has_next: [N] whether there is a next token.
    """

    asked: Asked
    has_next: NDArray[np.bool_]


class Questions:
    """What one run asks.

    Args:
        stats: names of metrics.
        tracked: ids of tokens.
    """

    def __init__(self, stats: tuple[str, ...], tracked: tuple[int, ...]) -> None:
        self.tracked = tracked
        self._metrics = metrics_of(stats, tracked=bool(tracked))
        needs = {METRICS[name].needs for name in self._metrics}
        self.needs_final, self._needs_next = "final" in needs, "next" in needs

    def about(self, following: Sequence[int], final: Final | None) -> Question | None:
        """The question about some places; None where the run asks nothing.

        Args:
            following: [N] the token after each place, -1 where there is none.
            final: what they are compared with, where ``needs_final``.
        """
        if not self._metrics:
            return None
        next_ids = torch.tensor(following)
        targets = torch.tensor(self.tracked, dtype=torch.int64).expand(len(following), -1)
        if self._needs_next:
            targets = torch.cat([targets, next_ids.clamp(min=0).unsqueeze(1)], dim=1)
        return Question(Asked.of_tokens(targets, final), (next_ids >= 0).numpy())

    def values(self, question: Question | None, read: Read) -> dict[str, NDArray[Any]]:
        """Metric -> [N] or [N, M] of one tap and layer."""
        if question is None:
            return {}
        tracked = len(self.tracked)
        found = Found(
            kl=read.kl,
            next_logprob=read.target_logprobs[:, tracked:].reshape(-1),
            next_rank=read.target_ranks[:, tracked:].reshape(-1),
            has_next=question.has_next,
            tracked_logprob=read.target_logprobs[:, :tracked],
            tracked_rank=read.target_ranks[:, :tracked],
        )
        return {name: _finite(METRICS[name].values(found)) for name in self._metrics}


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Infinity, the logprob of a masked token, as the largest number there is: no format here holds it."""
    return np.clip(values, _LOWEST, -_LOWEST) if values.dtype == np.float32 else values
