"""The intervention that was asked for, in a loaded model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raylens.storage.errors import ModelError
from raylens.storage.layers import select_layers
from raylens.storage.taps import TAPS
from raylens.workers.adapter import Adapter
from raylens.workers.interventions.edits import Edit
from raylens.workers.interventions.hooks import wide
from raylens.workers.interventions.intervention import Intervention, PlacedChange, place
from raylens.workers.interventions.sources import Sources
from raylens.workers.interventions.trial import try_edits
from raylens.workers.sums import TO_MID


def open_intervention(
    model: Any, adapter: Adapter, edits: tuple[Edit, ...], ids_of: Callable[[str], list[int]], device: torch.device
) -> Intervention:
    """The intervention, once each tap's edit has been tried and its prompts have been read.

    Args:
        model: the model.
        adapter: of it.
        edits: what is asked.
        ids_of: text -> token ids.
        device: where token ids go.

    Raises:
        ModelError: a tap cannot be edited in this model, with the reason; or read for a prompt.
    """
    for number, edit in enumerate(edits):
        for tap in (edit.tap, *([edit.source.tap or edit.tap] if edit.prompts and edit.source else [])):
            _check_tap(adapter, f"--intervene: edits[{number}]: tap {tap}", tap, edited=tap == edit.tap)
    try_edits(model, adapter, edited_layers(edits, len(adapter.sites)))
    sources = Sources(adapter, edits, ids_of, device)
    placed = [
        place(adapter, edit.tap, layer, edit.positions, partial(_change, edit, layer, sources))
        for edit in sorted(edits, key=lambda one: TAPS.index(one.tap))  # as the model computes; at one tap in the order given
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
    if tap in adapter.refused:
        raise ModelError(f"{what}: {adapter.refused[tap]}; edit another tap")
    if edited and tap == "resid_mid" and TO_MID not in adapter.sums:
        raise ModelError(
            f"{what}: what leads to it is no one module's output, so it cannot be edited; edit resid_pre, mlp_out or resid_post"
        )


def _is_nothing(edit: Edit) -> bool:
    """Whether it leaves every number as it is, to the last bit."""
    return edit.scale == 1.0 or (edit.add is not None and edit.add.scale == 0.0)


def edited_layers(edits: tuple[Edit, ...], layers: int) -> dict[str, set[int]]:
    """Tap -> the layers at which it is edited, of a model of so many layers."""
    found: dict[str, set[int]] = {}
    for edit in edits:
        found.setdefault(edit.tap, set()).update(select_layers(edit.layers, layers))
    return found


def _change(edit: Edit, layer: int, sources: Sources, scale: float) -> PlacedChange:
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
    return partial(_each, vector)


def _each(vectors: Tensor, positions: list[int], rows: Tensor) -> Tensor:
    """The vector of each position; tokens that are generated after the prompt have none and stay as they are."""
    changed = rows.clone()
    held = [number for number, position in enumerate(positions) if position < len(vectors)]
    changed[held] = vectors.to(rows)[[positions[number] for number in held]]
    return changed
