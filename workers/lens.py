"""The logit lens over one batch: run the model, read out chosen rows of every tap, assemble records.

softmax(unembed(final_norm(x))) at each tap (nostalgebraist 2020, "interpreting GPT: the logit lens"); the final norm is
computed anew on each tap's own vector, as LogitLens4LLMs does. Other lenses (lenses/) change x before that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.storage.record import Record, TapLens
from raylens.workers.adapter import Adapter
from raylens.workers.asked import Asked, Final
from raylens.workers.batching import Batch
from raylens.workers.capture import Sink, Site, capture
from raylens.workers.interventions.intervention import Intervention, spans_of
from raylens.workers.lenses.interface import HiddenLens
from raylens.workers.lenses.logit import LogitLens
from raylens.workers.plan import Hook, plan_walk
from raylens.workers.questions import Question, Questions
from raylens.workers.readers import DirectReader, Read, Reader, WalkReader
from raylens.workers.running import MOST_KEPT
from raylens.workers.settings import LensSettings
from raylens.workers.tokenize import Tokenized
from raylens.workers.walk import Place

#: Hidden rows waiting for read-out are read once they hold this many bytes, so memory stays flat in layers and length.
PENDING_BYTES = 64 << 20
#: So many times as many wait on a GPU where they are compared with the final layer, which is read out anew each time.
_COMPARED = 4

_FLOAT16_LOWEST = float(np.finfo(np.float16).min)


def chosen_places(taps: tuple[str, ...], layers: tuple[int, ...]) -> frozenset[Place]:
    """(tap, layer) of all that is read out: the embedding's tap is of layer 0 only."""
    return frozenset((tap, layer) for tap in taps for layer in _layers_of(tap, layers))


def _layers_of(tap: str, layers: tuple[int, ...]) -> tuple[int, ...]:
    return (0,) if tap == "resid_pre" else layers


class Lens:
    """Reads batches of one model with one setting.

    Args:
        adapter: of the model, which is in evaluation mode.
        settings: of the lens.
        layers: chosen layer numbers.
        taps: chosen taps, all certified.
        tracked: ids of tracked tokens.
        hidden: what is done to hidden states before the final norm; the logit lens does nothing.
        intervention: what is changed in the model while it runs.
    """

    def __init__(
        self,
        adapter: Adapter,
        settings: LensSettings,
        layers: tuple[int, ...],
        taps: tuple[str, ...],
        tracked: tuple[int, ...] = (),
        hidden: HiddenLens | None = None,
        intervention: Intervention | None = None,
    ) -> None:
        self._trunk = adapter.trunk
        self._projection = adapter.projection
        self._settings = settings
        self._layers = layers
        self._taps = taps
        self._hidden = hidden if hidden is not None else LogitLens()
        self._intervention = intervention if intervention is not None else Intervention()
        self._questions = Questions(settings.stats, tracked)
        self._last = ("resid_post", len(adapter.sites) - 1, adapter.sites[-1]["resid_post"])
        places = [(tap, layer) for tap in taps for layer in _layers_of(tap, layers)]
        self._wanted = frozenset(places)
        # running sums are of hidden states as they are, so only the logit lens may be walked
        self._walk = adapter.walk if settings.top_k <= MOST_KEPT and self._hidden.identity else None
        self._plan = plan_walk(adapter.sites, adapter.certificate["sums"], places) if self._walk else None
        self._hooks = self._plan.hooks if self._plan else [(tap, layer, adapter.sites[layer][tap]) for tap, layer in places]

    @property
    def path(self) -> str:
        """How logits are computed, and how exactly, for the certificate."""
        if self._walk is None or self._plan is None:
            return self._projection.path
        return (
            f"{self._projection.path}; {self._plan.products} products for {len(self._wanted)} places: "
            f"sums of what is added to the residual (within {self._walk.error:.1e} of float64)"
        )

    @property
    def hooks(self) -> list[Hook]:
        """(tap, layer, site) of every place whose rows ``taps`` needs."""
        compared = self._questions.needs_final and self._last[:2] not in {hook[:2] for hook in self._hooks}
        return [*self._hooks, self._last] if compared else list(self._hooks)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list["Record | ValueError"]:
        """A record for each prompt of the batch, or a ValueError where the model's numbers are not finite."""
        question = self._questions.about(batch.following, self._final(batch) if self._questions.needs_final else None)
        reader = self._reader(question.asked if question else None)
        self._forward(batch, self._hooks, lambda tap, layer, rows: reader.take(tap, layer, self._hidden(tap, layer, rows)))
        reader.flush()
        taps = {tap: self._tap(tap, reader.done, question) for tap in self._taps}
        records: list[Record | ValueError] = []
        start = 0
        for prompt in batch.prompts:
            part = slice(start, start + len(prompt.positions))
            start = part.stop
            records.append(self.record(prompt, {name: tap.part(part) for name, tap in taps.items()}))
        return records

    def taps(self, rows: dict[Place, Tensor], following: list[int]) -> dict[str, TapLens]:
        """The lens of N tokens whose hidden states were captured before.

        Args:
            rows: place of ``hooks`` -> [N, D], in the order in which the model computes them.
            following: [N] the token after each.
        """
        question = self._questions.about(
            following, self._read_final(rows[self._last[:2]]) if self._questions.needs_final else None
        )
        reader = self._reader(question.asked if question else None)
        hooked = {hook[:2] for hook in self._hooks}
        for (tap, layer), hidden in rows.items():
            if (tap, layer) in hooked:
                reader.take(tap, layer, self._hidden(tap, layer, hidden))
        reader.flush()
        return {tap: self._tap(tap, reader.done, question) for tap in self._taps}

    def record(self, prompt: Tokenized, taps: dict[str, TapLens]) -> Record | ValueError:
        """The record of a prompt, but for its display tokens; a ValueError where the model's numbers are not finite."""
        if not all(np.isfinite(tap.logsumexp).all() and np.isfinite(tap.entropy).all() for tap in taps.values()):
            return ValueError("the model's hidden states are not finite (NaN or overflow); try --dtype float32")
        return Record(
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
            tracked=list(self._questions.tracked),
        )

    def _forward(self, batch: Batch, hooks: Sequence[tuple[str, int, Site]], sink: Sink) -> None:
        # entered first, so that what is read is what the edits leave
        with self._intervention.during(spans_of(batch), batch.ids.shape[1]), capture(hooks, batch.rows, sink):
            self._trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    def _final(self, batch: Batch) -> Final:
        """What every place is compared with, from a forward pass of its own: places are read out before the last block runs."""
        found: list[Tensor] = []
        self._forward(batch, [self._last], lambda _tap, _layer, rows: found.append(rows))
        return self._read_final(found[0])

    def _read_final(self, rows: Tensor) -> Final:
        read = self._projection.read(rows, 1)
        return Final(rows, read.logsumexp, read.entropy)

    def _reader(self, asked: Asked | None) -> Reader:
        if self._walk is None or self._plan is None:
            compared = asked is not None and asked.final is not None and asked.final.rows.is_cuda
            budget = PENDING_BYTES * _COMPARED if compared else PENDING_BYTES
            return DirectReader(self._projection, self._settings.top_k, budget, asked)
        return WalkReader(self._walk, self._settings.top_k, self._wanted, self._plan.starts, PENDING_BYTES, asked)

    def _tap(self, tap: str, done: dict[Place, Read], question: Question | None) -> TapLens:
        layers = _layers_of(tap, self._layers)
        reads = [done[tap, layer] for layer in layers]
        logprobs: NDArray[Any] = np.stack([read.logprobs for read in reads])
        if self._settings.logprobs == "float16":
            logprobs = np.maximum(logprobs, _FLOAT16_LOWEST).astype(np.float16)
        stats = [self._questions.values(question, read) for read in reads]
        return TapLens(
            layers=layers,
            ids=np.stack([read.ids for read in reads]),
            logprobs=logprobs,
            logsumexp=np.stack([read.logsumexp for read in reads]),
            entropy=np.stack([read.entropy for read in reads]),
            stats={name: np.stack([values[name] for values in stats]) for name in stats[0]},
        )
