"""What can be stored of a place besides its best tokens: one row a metric.

Adding one is a row here; ``reference`` is its plain definition, which tests hold the row's values against. Attributions
(attribution.py) are no function of a place's own logits and have a table of their own. N places, M tracked tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raylens.storage.errors import UsageError, brief
from raylens.storage.taps import names_in

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What the pass over the logits of one tap and layer found.

    Attributes:
        kl: [N] KL(final || place).
        next_logprob, next_rank: [N] of the prompt's next token, empty where it was not asked, and
        has_next: [N] whether there is one.
        best_logprob, best_rank: [N] of the token that the final prediction puts first, empty where it was not asked.
        tracked_logprob, tracked_rank: [N, M].
    """

    kl: Values
    next_logprob: Values
    next_rank: Values
    has_next: Values
    best_logprob: Values
    best_rank: Values
    tracked_logprob: Values
    tracked_rank: Values


@dataclass(frozen=True, slots=True)
class Truth:
    """One place in float64, for definitions: [V] logits here and at the last layer, the next token and the tracked ones."""

    logits: Values
    final: Values
    next: int
    tracked: list[int]

    @property
    def best(self) -> int:
        """The token that the last layer puts first."""
        return int(self.final.argmax())

    def logprobs(self) -> Values:
        """[V] log softmax."""
        return log_softmax(self.logits)

    def rank(self, token: int) -> int:
        """1 for the most probable token; equal logits by id."""
        own = self.logits[token]
        return 1 + int((self.logits > own).sum()) + int((self.logits[:token] == own).sum())


def log_softmax(logits: Values) -> Values:
    """[V] float64."""
    moved: Values = logits - logits.max()
    return moved - float(np.log(np.exp(moved).sum()))


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    Attributes:
        needs: what must be asked of the pass.
        values: [N] or [N, M], float32 or uint32; NaN or 0 where there is no value.
        reference: the value of one place, or its M values.
    """

    needs: Literal["final", "next", "best", "tracked"]
    values: Callable[[Found], Values]
    reference: Callable[[Truth], Any]


def _kl(truth: Truth) -> float:
    final = log_softmax(truth.final)
    return float((np.exp(final) * (final - truth.logprobs())).sum())


METRICS = {
    "kl": Metric("final", lambda found: found.kl, _kl),
    "next_logprob": Metric(
        "next",
        lambda found: np.where(found.has_next, found.next_logprob, np.float32(np.nan)),
        lambda truth: truth.logprobs()[truth.next],
    ),
    "next_rank": Metric(
        "next",
        lambda found: np.where(found.has_next, found.next_rank, np.uint32(0)),
        lambda truth: truth.rank(truth.next),
    ),
    "best_logprob": Metric("best", lambda found: found.best_logprob, lambda truth: truth.logprobs()[truth.best]),
    "best_rank": Metric("best", lambda found: found.best_rank, lambda truth: truth.rank(truth.best)),
    "tracked_logprob": Metric(
        "tracked",
        lambda found: found.tracked_logprob,
        lambda truth: [truth.logprobs()[token] for token in truth.tracked],
    ),
    "tracked_rank": Metric(
        "tracked",
        lambda found: found.tracked_rank,
        lambda truth: [truth.rank(token) for token in truth.tracked],
    ),
}

#: Attributions: to the logits of which tokens.
ATTRIBUTIONS: dict[str, Literal["tracked", "next", "best"]] = {
    "attribution": "tracked",
    "next_attribution": "next",
    "best_attribution": "best",
}
#: What is stored beside them: by how much the terms so far are short of a residual, and at the end of the model's own logit.
ATTRIBUTION_ERROR = "attribution_error"

#: What ``all`` is; the other metrics come with ``--track``.
ALL = tuple(name for name, metric in METRICS.items() if metric.needs != "tracked")
#: What ``--stats`` may name.
STATS = (*ALL, *ATTRIBUTIONS)


def parse_stats(asked: str | Iterable[str]) -> tuple[str, ...]:
    """Names from a comma list, each once, in the order of the tables; ``all`` is all but the attributions, ``none`` none.

    Raises:
        UsageError: there is no such metric, or ``none`` stands beside others.
    """
    asked_for = names_in(asked, "--stats")
    if "none" in asked_for and set(asked_for) != {"none"}:
        raise UsageError(f"--stats {brief(','.join(asked_for))}: none goes with no other; leave it out, or the others")
    names = [name for given in asked_for for name in {"all": ALL, "none": ()}.get(given, (given,))]
    for name in names:
        if name not in STATS:
            raise UsageError(f"--stats {brief(name)}: there is no such statistic; choose from {', '.join(STATS)}, all, or none")
    return tuple(name for name in STATS if name in names)


def metrics_of(stats: Iterable[str], tracked: bool) -> tuple[str, ...]:
    """The rows of METRICS that a run stores."""
    return tuple(name for name, metric in METRICS.items() if name in stats or (tracked and metric.needs == "tracked"))
