"""A model that is changed while it runs: ``with intervention.during(spans, columns):`` around any forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raylens.storage.errors import ModelError
from raylens.workers.adapter import Adapter
from raylens.workers.batching import Batch
from raylens.workers.interventions.edits import Edit
from raylens.workers.interventions.hooks import Change, Remove, change_input, change_output, change_sum, wide
from raylens.workers.interventions.places import Span, places
from raylens.workers.interventions.sources import Sources, site_of
from raylens.workers.selection import select_layers

#: What makes the middle residual, where it can be edited.
_MIDDLE = "resid_pre + attn_out = resid_mid"


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
    change: Callable[[list[int], Tensor], Tensor]


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


def open_intervention(
    adapter: Adapter, edits: tuple[Edit, ...], ids_of: Callable[[str], list[int]], device: torch.device
) -> Intervention:
    """The intervention, once its prompts have been read.

    Args:
        adapter: of the model.
        edits: what is asked.
        ids_of: text -> token ids.
        device: where token ids go.

    Raises:
        ModelError: a tap cannot be edited in this model, with the reason; or read for a prompt.
    """
    for number, edit in enumerate(edits):
        for tap in (edit.tap, *([edit.source.tap or edit.tap] if edit.prompts and edit.source else [])):
            _check_tap(adapter, f"--intervene: edits[{number}]: tap {tap}", tap, edited=tap == edit.tap)
    sources = Sources(adapter, edits, ids_of, device)
    placed = [
        _placed(adapter, edit, layer, sources)
        for edit in edits
        if not _is_nothing(edit)
        for layer in select_layers(edit.layers, len(adapter.sites))
    ]
    lengths = {
        sources.tokens[prompt]: f"edits[{number}] patches each position from a prompt of {sources.tokens[prompt]} tokens"
        for number, edit in enumerate(edits)
        if edit.patch is not None and edit.patch.position == "each"
        for prompt in edit.prompts
    }
    return Intervention(placed, lengths, sources.digest())


def _check_tap(adapter: Adapter, what: str, tap: str, *, edited: bool) -> None:
    refused: dict[str, str] = adapter.certificate["refused"]
    if tap in refused:
        raise ModelError(f"{what}: {refused[tap]}; edit another tap")
    if edited and tap == "resid_mid" and _MIDDLE not in adapter.certificate["sums"]:
        raise ModelError(
            f"{what}: what leads to it is no one module's output, so an edit of it cannot be made; edit resid_pre, mlp_out or resid_post"
        )


def _is_nothing(edit: Edit) -> bool:
    """Whether it leaves every number as it is, to the last bit."""
    return edit.scale == 1.0 or (edit.add is not None and edit.add.scale == 0.0)


def _placed(adapter: Adapter, edit: Edit, layer: int, sources: Sources) -> Placed:
    block = adapter.sites[layer]["resid_post"].module
    if edit.tap == "resid_mid":
        attention = adapter.sites[layer]["attn_out"]
        register = partial(change_sum, block, attention.module, attention.scale)
        scale = 1.0
    else:
        site = site_of(adapter, edit.tap, layer)
        register = partial(change_input if site.reads_input else change_output, site.module)
        scale = site.scale
    return Placed(edit.positions, register, _change(edit, layer, scale, sources))


def _change(edit: Edit, layer: int, scale: float, sources: Sources) -> Callable[[list[int], Tensor], Tensor]:
    """Of rows as the module gives them, which are the tap's divided by the scale."""
    if edit.zero:
        return lambda _, rows: torch.zeros_like(rows)
    if edit.scale is not None:
        factor = edit.scale
        return lambda _, rows: wide(rows) * factor
    vector = sources.vector(edit, layer, scale)
    if edit.add is not None:
        return lambda _, rows: wide(rows) + vector.to(rows.device)
    if vector.dim() == 1:
        return lambda _, rows: vector.to(rows.device).expand(len(rows), -1)
    return lambda positions, rows: vector.to(rows.device)[positions]
