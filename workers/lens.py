"""The logit lens over one batch: run the model, read out chosen rows of every tap, assemble records.

softmax(unembed(final_norm(x))) at each tap (nostalgebraist 2020, "interpreting GPT: the logit lens"); the final norm is
computed anew on each tap's own vector, as LogitLens4LLMs does. Other lenses (lenses/) change x before that.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from raylens.storage.record import Record, TapLens
from raylens.storage.taps import head_tap
from raylens.workers.adapter import Adapter
from raylens.workers.attribution import Attribution
from raylens.workers.batching import Batch
from raylens.workers.capture import Sink, Sites, capture
from raylens.workers.chosen import chosen_places, layers_of
from raylens.workers.heads import Heads
from raylens.workers.interventions.intervention import Intervention, spans_of
from raylens.workers.lenses.interface import HiddenLens, Place
from raylens.workers.lenses.logit import LogitLens
from raylens.workers.plan import WalkPlan, plan_walk
from raylens.workers.questions import Questions
from raylens.workers.reading import ReadPlan
from raylens.workers.running import MOST_KEPT
from raylens.workers.settings import LensSettings
from raylens.workers.tokenize import Tokenized

#: Where places are compared with the final prediction, a batch's hidden rows wait for it if they hold at most so many bytes; the
#: final rows of a larger batch come from a forward pass of their own, so that memory stays flat.
KEPT_BYTES = 192 << 20


class Lens:
    """Reads batches of one model with one setting.

    Args:
        adapter: of the model, which is in evaluation mode.
        settings: of the lens.
        layers: chosen layer numbers.
        taps: chosen taps, all certified.
        tracked: how many tokens are tracked in each prompt.
        hidden: what is done to hidden states before the final norm; the logit lens does nothing.
        intervention: what is changed in the model while it runs.
        heads: of the layers whose attention heads are lensed one by one.
        attribution: of the model, where attributions are asked for.

    Attributes:
        intervention: as given, or one that changes nothing.
    """

    def __init__(
        self,
        adapter: Adapter,
        settings: LensSettings,
        layers: tuple[int, ...],
        taps: tuple[str, ...],
        tracked: int = 0,
        hidden: HiddenLens | None = None,
        intervention: Intervention | None = None,
        heads: Mapping[int, Heads] | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        self._adapter = adapter
        self._layers = layers
        self._heads = heads or {}
        hidden = hidden if hidden is not None else LogitLens()
        self.intervention = intervention if intervention is not None else Intervention()
        questions = Questions(settings.stats or (), tracked, settings.residual_stats)
        attribution = attribution if questions.attributes else None
        self._last: Place = ("resid_post", len(adapter.sites) - 1)
        layers_by_tap = {tap: layers_of(tap, layers) for tap in taps}
        places = [(tap, layer) for tap in taps for layer in layers_by_tap[tap]]
        # running sums are of hidden states as they are, so only the logit lens may be walked
        self._walk = adapter.walk if settings.top_k <= MOST_KEPT and hidden.identity else None
        plan = self._planned(places)
        self._reads = ReadPlan(
            settings,
            adapter.projection,
            (self._walk, plan) if self._walk and plan else None,
            hidden,
            questions,
            attribution,
            frozenset(places),
            layers_by_tap | _head_layers(self._heads),
        )
        self._needs_final = questions.needs_final
        self._sites = {
            **(plan.sites if plan else {(tap, layer): adapter.sites[layer][tap] for tap, layer in places}),
            **{("heads", layer): one.site for layer, one in self._heads.items()},
            **(attribution.sites if attribution else {}),
        }
        self._end = {self._last: adapter.sites[-1]["resid_post"]}

    def _planned(self, places: list[Place]) -> WalkPlan | None:
        return plan_walk(self._adapter.sites, self._adapter.sums, places) if self._walk else None

    def products(self, taps: tuple[str, ...], layers: tuple[int, ...]) -> int:
        """Rows a token that are multiplied with the unembedding, were these taps and layers chosen."""
        places = sorted(chosen_places(taps, layers))
        plan = self._planned(places)
        return plan.products if plan else len(places)

    @property
    def path(self) -> str:
        """How logits are computed, and how exactly, for the certificate."""
        return self._reads.path

    @property
    def sites(self) -> Sites:
        """Of every place whose rows ``taps`` needs."""
        return self._sites | self._end if self._needs_final else self._sites

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list["Record | ValueError"]:
        """A record for each prompt of the batch, or a ValueError where the model's numbers are not finite."""
        taps = self._kept(batch) if self._needs_final and self._may_keep(batch) else self._passing(batch)
        return [
            self.record(prompt, {name: tap.part(places) for name, tap in taps.items()})
            for prompt, places in zip(batch.prompts, batch.places, strict=True)
        ]

    def taps(self, rows: dict[Place, Tensor], following: Sequence[int], tracked: Sequence[tuple[int, ...]]) -> dict[str, TapLens]:
        """The lens of N tokens whose hidden states were captured before.

        Args:
            rows: place of ``sites`` -> [N, D], in the order in which the model computes them; they are taken out, and so freed.
            following: [N] the token after each.
            tracked: [N] the tokens tracked there.
        """
        reading = self._reads.begin(following, tracked, rows[self._last] if self._needs_final else None)
        for tap, layer in list(rows):
            reading.take(tap, layer, rows.pop((tap, layer)))
        return reading.finish()

    def record(self, prompt: Tokenized, taps: dict[str, TapLens]) -> Record | ValueError:
        """The record of a prompt, but for its display tokens; a ValueError where the model's numbers are not finite."""
        if not all(np.isfinite(tap.logsumexp).all() and np.isfinite(tap.entropy).all() for tap in taps.values()):
            return self.not_finite("hidden states")
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
            tracked=list(prompt.tracked),
        )

    def not_finite(self, what: str) -> ValueError:
        """What is told of a prompt of which some numbers of the model are not finite."""
        why = "; --intervene may change it by too much" if self.intervention.edits else ", in float32 already"
        if self._adapter.certificate["dtype"] != "float32":
            why = "; try --dtype float32"
        return ValueError(f"the model's {what} are not finite (NaN or overflow){why}")

    def _forward(self, batch: Batch, sites: Sites, sink: Sink) -> None:
        # entered first, so that what is read is what the edits leave
        with self.intervention.during(spans_of(batch), batch.ids.shape[1]), capture(sites, batch.rows, sink):
            self._adapter.trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    def _may_keep(self, batch: Batch) -> bool:
        width = getattr(self._adapter.projection.head, "in_features", KEPT_BYTES)
        places = len(self.sites) + sum(one.count for one in self._heads.values())
        return 4 * len(batch.rows) * places * width <= KEPT_BYTES

    def _kept(self, batch: Batch) -> dict[str, TapLens]:
        """The lens by one forward pass, whose rows are read out once the final prediction is known."""
        rows: dict[Place, Tensor] = {}
        self._forward(batch, self.sites, lambda tap, layer, found: rows.__setitem__((tap, layer), found))
        return self.taps(rows, batch.following, batch.tracked)

    def _passing(self, batch: Batch) -> dict[str, TapLens]:
        """The lens with places read out as the model goes on."""
        reading = self._reads.begin(batch.following, batch.tracked, self._final(batch) if self._needs_final else None)
        self._forward(batch, self._sites, reading.take)
        return reading.finish()

    def _final(self, batch: Batch) -> Tensor:
        """[N, D] what every place is compared with, by a pass of its own: places are read out before the last block runs."""
        found: list[Tensor] = []
        self._forward(batch, self._end, lambda _tap, _layer, rows: found.append(rows))
        return found[0]


def _head_layers(heads: Mapping[int, Heads]) -> dict[str, tuple[int, ...]]:
    """Tap of each head -> the layers that have it."""
    most = max((one.count for one in heads.values()), default=0)
    return {head_tap(head): tuple(layer for layer, one in heads.items() if head < one.count) for head in range(most)}
