"""A model that is changed while it runs: ``with intervention.during(spans, columns):`` around any forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raylens.workers.adapter import Adapter
from raylens.workers.batching import Batch
from raylens.workers.interventions.hooks import Change, Remove, change_input, change_output, change_sum
from raylens.workers.interventions.places import Span, places
from raylens.workers.interventions.sources import site_of

#: (positions of N rows, [N, D] rows) -> [N, D] what they become.
PlacedChange = Callable[[list[int], Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Placed:
    """One edit at one layer.

    Attributes:
        positions: which, as the edit says.
        register: hooks a change of the given rows in.
        change: of rows at the given positions.
    """

    positions: str
    register: Callable[[Tensor, Change], Remove]
    change: PlacedChange


class Intervention:
    """Edits of a model, in the order in which they were given: of two at one place the second sees what the first left.

    Args:
        placed: the edits; none leave the model as it is.
        lengths: tokens that a prompt must have, and why, for edits that go position by position.
        digest: of what was read from other prompts.
    """

    def __init__(self, placed: Sequence[Placed] = (), lengths: dict[int, str] | None = None, digest: str | None = None) -> None:
        self._placed = placed
        self._lengths = lengths or {}
        self.digest = digest

    @property
    def edits(self) -> bool:
        """Whether there are any."""
        return bool(self._placed)

    def problem(self, tokens: int) -> str | None:
        """Why a prompt of so many tokens cannot be run; None where it can."""
        return next((why for length, why in self._lengths.items() if length != tokens), None)

    @contextmanager
    def during(self, spans: Sequence[Span], columns: int) -> Iterator[None]:
        """While open, the model's forward passes are edited; hooks that are entered within see what the edits leave.

        Args:
            spans: what each row of the pass holds, in absolute positions.
            columns: of the pass, padding included.
        """
        with ExitStack() as hooks:
            for one in self._placed:
                rows, positions = places(one.positions, spans, columns)
                if rows:
                    hooks.callback(one.register(torch.tensor(rows), partial(one.change, positions)))
            yield


def spans_of(batch: Batch) -> list[Span]:
    """Whole prompts, padded on the right."""
    return [Span(len(prompt.ids), 0, len(prompt.ids)) for prompt in batch.prompts]


def place(adapter: Adapter, tap: str, layer: int, positions: str, change_at: Callable[[float], PlacedChange]) -> Placed:
    """Where a tap of a layer is edited.

    Args:
        change_at: the change, of rows that times the scale are the tap's.
    """
    if tap == "resid_mid":
        block, attention = adapter.sites[layer]["resid_post"].module, adapter.sites[layer]["attn_out"]
        return Placed(positions, partial(change_sum, block, attention.module, attention.scale), change_at(1.0))
    site = site_of(adapter, tap, layer)
    return Placed(positions, partial(change_input if site.reads_input else change_output, site.module), change_at(site.scale))
