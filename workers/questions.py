"""What a lens asks about a batch beyond the best tokens, and its answers as the metrics that are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.asked import Asked, Final
from raylens.workers.attribution import PlaceTerms
from raylens.workers.metrics import ATTRIBUTION_ERROR, ATTRIBUTIONS, METRICS, Found, metrics_of
from raylens.workers.readers import Read

_LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about each of N places.

    Attributes:
        asked: of the pass over the logits; the targets are M tracked tokens, then the prompt's next token and the final
            prediction's best, as far as they are asked. None where only attributions are.
        attributed: [N, A] tokens to whose logits the places' terms are asked, attribution after attribution.
        has_next: [N] whether there is a next token.
    """

    asked: Asked | None
    attributed: Tensor
    has_next: NDArray[np.bool_]


class Questions:
    """What one run asks.

    Args:
        stats: names of metrics and attributions.
        tracked: how many tokens are tracked in a prompt.
        residual: names of more metrics, of resid_post only.

    Attributes:
        attributes: whether terms of logits are asked for.
        needs_final: whether the final prediction must be known before any place is read.
    """

    def __init__(self, stats: tuple[str, ...], tracked: int, residual: tuple[str, ...] = ()) -> None:
        self._tracked = tracked
        self._residual = frozenset(residual)
        self._metrics = metrics_of((*stats, *residual), tracked=tracked > 0)
        self._attributions = tuple(name for name in ATTRIBUTIONS if name in stats)
        self.attributes = bool(self._attributions)
        needs = {METRICS[name].needs for name in self._metrics}
        self._asks_distance = "final" in needs
        self._targets = ("tracked", *(kind for kind in ("next", "best") if kind in needs))
        self.needs_final = self._asks_distance or "best" in needs or "best_attribution" in stats

    def about(
        self, following: Sequence[int], tracked: Sequence[tuple[int, ...]], final: Final | None, best: Tensor | None
    ) -> Question | None:
        """The question about some places; None where the run asks nothing.

        Args:
            following: [N] the token after each place, -1 where there is none.
            tracked: [N] the M tracked tokens of its prompt.
            final, best: what they are compared with, and [N, 1] the ids it puts first, where ``needs_final``.
        """
        if not self._metrics and not self._attributions:
            return None
        after = torch.tensor(following)
        tokens = {
            "tracked": torch.tensor(tracked, dtype=torch.int64).view(len(after), self._tracked),
            "next": after.clamp(min=0).unsqueeze(1),
            "best": torch.empty(len(after), 0, dtype=torch.int64) if best is None else best.cpu(),
        }
        targets = torch.cat([tokens[kind] for kind in self._targets], dim=1)
        taps = frozenset({"resid_post"}) if self._residual.issuperset(self._metrics) else None
        asked = Asked.of_tokens(targets, final if self._asks_distance else None, taps) if self._metrics else None
        attributed = [tokens[ATTRIBUTIONS[name]] for name in self._attributions]
        return Question(asked, torch.cat([tokens["tracked"][:, :0], *attributed], dim=1), (after >= 0).numpy())

    def compares(self, tap: str) -> bool:
        """Whether a tap is compared with the whole of the final prediction."""
        return any(METRICS[name].needs == "final" and self._has(tap, name) for name in self._metrics)

    def _has(self, tap: str, name: str) -> bool:
        return tap == "resid_post" or name not in self._residual

    def values(self, tap: str, question: Question | None, read: Read, terms: PlaceTerms | None) -> dict[str, NDArray[Any]]:
        """Metric or attribution -> [N] or [N, M] of one tap and layer; only what is stored of the tap."""
        if question is None:
            return {}
        logprobs, ranks = (self._by_target(values) for values in (read.target_logprobs, read.target_ranks))
        found = Found(
            kl=read.kl,
            next_logprob=logprobs["next"].reshape(-1),
            next_rank=ranks["next"].reshape(-1),
            has_next=question.has_next,
            best_logprob=logprobs["best"].reshape(-1),
            best_rank=ranks["best"].reshape(-1),
            tracked_logprob=logprobs["tracked"],
            tracked_rank=ranks["tracked"],
        )
        values = {name: _finite(METRICS[name].values(found)) for name in self._metrics if self._has(tap, name)}
        return values if terms is None else values | self._terms(terms, question.has_next)

    def _by_target(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """[N, M] of tracked tokens, and [N, 1] of the other targets, [N, 0] of those that are not asked."""
        found = dict(zip(self._targets, self._columns(values, self._targets), strict=True))
        return dict.fromkeys(("next", "best"), values[:, :0]) | found

    def _terms(self, terms: PlaceTerms, has_next: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        kinds = [ATTRIBUTIONS[name] for name in self._attributions]
        columns = zip(self._attributions, kinds, self._columns(_finite(terms.values), kinds), strict=True)
        values = {name: found if kind == "tracked" else found[:, 0] for name, kind, found in columns}
        if "next_attribution" in values:
            values["next_attribution"] = np.where(has_next, values["next_attribution"], np.float32(np.nan))
        return {**values, ATTRIBUTION_ERROR: _finite(terms.error)}

    def _columns(self, values: NDArray[Any], kinds: Sequence[str]) -> list[NDArray[Any]]:
        """[N, M] of tracked tokens and [N, 1] of any other kind of token, which lie side by side in the values."""
        widths = [self._tracked if kind == "tracked" else 1 for kind in kinds]
        return np.split(values, np.cumsum(widths)[:-1], axis=1)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Infinity, the logprob of a masked token, as the largest number there is: no format here holds it."""
    return np.clip(values, _LOWEST, -_LOWEST) if values.dtype == np.float32 else values
