"""The vectors of an intervention: numbers as given, and what taps hold for other prompts, from one plain forward pass of each."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from raylens.storage.errors import ModelError, named_line
from raylens.storage.layers import select_layers
from raylens.workers.adapter import Adapter
from raylens.workers.blocks import device_of
from raylens.workers.capture import Site, capture
from raylens.workers.interventions.edits import Add, Edit
from raylens.workers.interventions.hooks import wide

#: A position of a prompt's tokens: "each" is all of them, "last" the last.
Position = int | Literal["last", "each"]
#: (prompt, tap, layer, position).
Held = tuple[str, str, int, Position]


def site_of(adapter: Adapter, tap: str, layer: int) -> Site:
    """Where a tap is read; the residual before any block but the first too, which is not lensed."""
    if tap == "resid_pre":
        return Site(adapter.sites[layer]["resid_post"].module, "", reads_input=True)
    return adapter.sites[layer][tap]


def source_place(edit: Edit, layer: int) -> tuple[str, int]:
    """Tap and layer that the vector of an edit at a layer is taken from."""
    source = edit.source
    assert source is not None
    return source.tap or edit.tap, layer if source.layer is None else source.layer


class Sources:
    """What taps hold for the prompts that edits name, as the modules gave it, without the scale of their sites.

    Args:
        adapter: of the model.
        edits: whose prompts are read.
        ids_of: text -> token ids.
        device: where token ids go.

    Raises:
        ModelError: the model fails on a prompt, or gives numbers that are not finite.
    """

    def __init__(
        self, adapter: Adapter, edits: tuple[Edit, ...], ids_of: Callable[[str], list[int]], device: torch.device
    ) -> None:
        self._adapter = adapter
        self._rows: dict[Held, Tensor] = {}
        self.tokens: dict[str, int] = {}
        wanted: dict[str, dict[tuple[str, int], dict[Position, None]]] = defaultdict(lambda: defaultdict(dict))
        for edit in edits:
            for prompt in edit.prompts:
                assert edit.source is not None
                for layer in select_layers(edit.layers, len(adapter.sites)):
                    wanted[prompt][source_place(edit, layer)][edit.source.position] = None
        for prompt, taps in wanted.items():
            ids = ids_of(prompt)
            self.tokens[prompt] = len(ids)
            self._read(prompt, torch.tensor([ids], device=device), taps)

    def _read(self, prompt: str, ids: Tensor, taps: dict[tuple[str, int], dict[Position, None]]) -> None:
        def keep(tap: str, layer: int, rows: Tensor) -> None:
            if not bool(rows.isfinite().all()):
                remedy = "give another prompt" if self._adapter.certificate["dtype"] == "float32" else "try --dtype float32"
                raise ModelError(f"--intervene: {tap} of layer {layer} is not finite for the prompt {prompt[:60]!r}; {remedy}")
            for position in taps[tap, layer]:
                # a copy, which does not keep all of a prompt in memory for one of its rows
                self._rows[prompt, tap, layer, position] = _at(rows, position).clone()

        sites = {(tap, layer): replace(site_of(self._adapter, tap, layer), scale=1.0) for tap, layer in taps}
        try:
            with torch.inference_mode(), capture(sites, torch.arange(ids.shape[1], device=ids.device), keep):
                self._adapter.trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except ModelError:
            raise
        except Exception as error:  # a model may raise anything
            what = f"the prompt {prompt[:60]!r} of {ids.shape[1]} tokens"
            raise ModelError(f"--intervene: the model cannot run {what} ({named_line(error)})") from error

    def vector(self, edit: Edit, layer: int, scale: float) -> Tensor:
        """[D] what an edit adds or puts in place at a layer, or [T, D], one for each position; over the scale of its site."""
        source = edit.source
        assert source is not None
        if isinstance(source, Add) and source.values is not None:
            # there once, and not copied at each pass
            device = device_of(site_of(self._adapter, edit.tap, layer).module, torch.device("cpu"))
            return torch.tensor(source.values, device=device) * (source.scale / scale)
        tap, at = source_place(edit, layer)
        found = [self._rows[prompt, tap, at, source.position] for prompt in edit.prompts]
        whole = wide(found[0]) - wide(found[1]) if len(found) > 1 else found[0]
        factor = site_of(self._adapter, tap, at).scale / scale * (source.scale if isinstance(source, Add) else 1.0)
        return whole if factor == 1.0 else wide(whole) * factor  # rounded once, where it is put into the model

    def digest(self) -> str | None:
        """The first 16 hex digits of SHA-256 over all that was read, as float32; None where nothing was."""
        if not self._rows:
            return None
        digest = hashlib.sha256()
        for data in self._bytes():
            digest.update(data)
        return digest.hexdigest()[:16]

    def _bytes(self) -> Iterator[bytes]:
        for (prompt, tap, layer, position), rows in self._rows.items():
            yield f"{prompt}\0{tap}\0{layer}\0{position}\0".encode()
            yield rows.to("cpu", torch.float32).contiguous().numpy().tobytes()


def _at(rows: Tensor, position: Position) -> Tensor:
    """[T, D] all rows, or [D] one of them."""
    return rows if position == "each" else rows[-1 if position == "last" else position]
