"""The logit lens over one batch: run the model, read out chosen rows of every tap, assemble records.

softmax(unembed(final_norm(x))) at each tap (nostalgebraist 2020, "interpreting GPT: the logit lens"); the final norm is
computed anew on each tap's own vector, as LogitLens4LLMs does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.storage.record import Record, TapLens
from raylens.workers.adapter import Adapter
from raylens.workers.batching import Batch
from raylens.workers.capture import Site, capture
from raylens.workers.projection import Projection
from raylens.workers.settings import LensSettings

#: Hidden rows waiting for read-out are read once they hold this many bytes, so memory stays flat in layers and length.
PENDING_BYTES = 64 << 20

_Place = tuple[str, int]
_FLOAT16_LOWEST = float(np.finfo(np.float16).min)


@dataclass(frozen=True, slots=True)
class _Read:
    """The read-out of one (tap, layer): N rows, K tokens."""

    ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]
    logsumexp: NDArray[np.float32]
    entropy: NDArray[np.float32]


class _Reader:
    """Collects rows from hooks and reads them out together: one large product is far faster than many small ones."""

    def __init__(self, projection: Projection, k: int) -> None:
        self._projection = projection
        self._k = k
        self._pending: list[tuple[_Place, Tensor]] = []
        self._bytes = 0
        self.done: dict[_Place, _Read] = {}

    def take(self, tap: str, layer: int, rows: Tensor) -> None:
        self._pending.append(((tap, layer), rows))
        self._bytes += rows.numel() * rows.element_size()
        if self._bytes >= PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        device = self._pending[-1][1].device  # under a device map the last layer's, nearest to the head
        rows = torch.cat([rows.to(device) for _, rows in self._pending])
        sizes = [len(rows) for _, rows in self._pending]
        places = [place for place, _ in self._pending]
        self._pending, self._bytes = [], 0
        read = self._projection.read(rows, self._k)
        parts = zip(
            *(torch.split(value.cpu(), sizes) for value in (read.ids, read.logprobs, read.logsumexp, read.entropy)), strict=True
        )
        for place, (ids, logprobs, logsumexp, entropy) in zip(places, parts, strict=True):
            self.done[place] = _Read(ids.numpy().astype(np.uint32), logprobs.numpy(), logsumexp.numpy(), entropy.numpy())


class Lens:
    """Reads batches of one model with one setting.

    Args:
        adapter: of the model, which is in evaluation mode.
        settings: of the lens.
        layers: chosen layer numbers.
        taps: chosen taps, all certified.
    """

    def __init__(self, adapter: Adapter, settings: LensSettings, layers: tuple[int, ...], taps: tuple[str, ...]) -> None:
        self._trunk = adapter.trunk
        self._projection = adapter.projection
        self._settings = settings
        self._layers = layers
        self._taps = taps
        self._sites: list[tuple[str, int, Site]] = [
            (tap, layer, adapter.sites[layer][tap]) for tap in taps for layer in self._layers_of(tap)
        ]

    def _layers_of(self, tap: str) -> tuple[int, ...]:
        return (0,) if tap == "resid_pre" else self._layers

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list["Record | ValueError"]:
        """A record for each prompt of the batch, or a ValueError where the model's numbers are not finite."""
        reader = _Reader(self._projection, self._settings.top_k)
        with capture(self._sites, batch.rows, reader.take):
            self._trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        reader.flush()
        records: list[Record | ValueError] = []
        start = 0
        for prompt in batch.prompts:
            part = slice(start, start + len(prompt.positions))
            start = part.stop
            taps = {tap: self._tap(tap, reader.done, part) for tap in self._taps}
            if not all(np.isfinite(tap.logsumexp).all() and np.isfinite(tap.entropy).all() for tap in taps.values()):
                records.append(ValueError("the model's hidden states are not finite (NaN or overflow); try --dtype float32"))
                continue
            records.append(
                Record(
                    id=prompt.prompt.id,
                    index=prompt.prompt.index,
                    text=prompt.text,
                    token_ids=prompt.ids,
                    tokens=[],
                    positions=prompt.positions,
                    layers=list(self._layers),
                    taps=taps,
                    metadata=prompt.prompt.metadata,
                    truncated_from=prompt.truncated_from,
                )
            )
        return records

    def _tap(self, tap: str, done: dict[_Place, _Read], rows: slice) -> TapLens:
        layers = self._layers_of(tap)
        reads = [done[tap, layer] for layer in layers]
        logprobs: NDArray[Any] = np.stack([read.logprobs[rows] for read in reads])
        if self._settings.logprobs == "float16":
            logprobs = np.maximum(logprobs, _FLOAT16_LOWEST).astype(np.float16)
        return TapLens(
            layers=layers,
            ids=np.stack([read.ids[rows] for read in reads]),
            logprobs=logprobs,
            logsumexp=np.stack([read.logsumexp[rows] for read in reads]),
            entropy=np.stack([read.entropy[rows] for read in reads]),
        )
