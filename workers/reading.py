"""What becomes of the hidden states of one batch: each place read out, and the places of a tap put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raylens.storage.record import TapLens
from raylens.storage.taps import is_head
from raylens.workers.asked import Asked, Final
from raylens.workers.attribution import Attribution, PlaceTerms
from raylens.workers.lenses.interface import HiddenLens, Place
from raylens.workers.plan import WalkPlan
from raylens.workers.projection import Projection
from raylens.workers.questions import Question, Questions
from raylens.workers.readers import DirectReader, Read, WalkReader
from raylens.workers.settings import LensSettings
from raylens.workers.walk import Walk

#: Hidden rows waiting for read-out are read once they hold this many bytes, so memory stays flat in layers and length.
PENDING_BYTES = 64 << 20
#: So many times as many wait on a GPU where they are compared with the final layer, which is read out anew each time.
_COMPARED = 4


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What one run reads out of every batch, and how.

    Attributes:
        settings: of the lens.
        projection: from rows to logits.
        walking: how residuals are read out as running sums; None where each place is read by itself.
        hidden: what is done to hidden states before the final norm.
        questions: what is asked beyond the best tokens.
        attribution: of the model, where attributions are asked for.
        places: (tap, layer) that are stored, but for heads.
        layers_of: tap, heads among them -> its layers.
    """

    settings: LensSettings
    projection: Projection
    walking: tuple[Walk, WalkPlan] | None
    hidden: HiddenLens
    questions: Questions
    attribution: Attribution | None
    places: frozenset[Place]
    layers_of: Mapping[str, tuple[int, ...]]

    @property
    def path(self) -> str:
        """How logits are computed, and how exactly, for the certificate."""
        path = self.projection.path(self.settings.top_k)
        if self.walking is None:
            return path
        walk, plan = self.walking
        return (
            f"{path}; {plan.products} products for {len(self.places)} places: "
            f"sums of what is added to the residual (within {walk.error:.1e} of float64)"
        )

    def begin(self, following: Sequence[int], tracked: Sequence[tuple[int, ...]], final: Tensor | None) -> "Reading":
        """The reading of N tokens.

        Args:
            following: [N] the token after each.
            tracked: [N] the tokens tracked there.
            final: [N, D] the last layer's rows, where places are compared with its prediction.
        """
        end, best = None, None
        if final is not None:
            read = self.projection.read(final, 1)
            end, best = Final(final, read.logsumexp, read.entropy), read.ids
        return Reading(self, self.questions.about(following, tracked, end, best), end)

    def reader(self, asked: Asked | None) -> DirectReader | WalkReader:
        """Of the residual and, where residuals are running sums, of their parts."""
        if self.walking is None:
            return self.direct(asked)
        walk, plan = self.walking
        return WalkReader(walk, self.settings.top_k, self.places, plan.starts, PENDING_BYTES, asked)

    def direct(self, asked: Asked | None) -> DirectReader:
        """Of each place by itself."""
        compared = asked is not None and asked.final is not None and asked.final.rows.is_cuda
        budget = PENDING_BYTES * _COMPARED if compared else PENDING_BYTES
        return DirectReader(self.projection, self.settings.top_k, budget, asked)


class Reading:
    """Takes the rows of one batch, or of some steps, as they are handed over, and makes the lens of them.

    Args:
        how: the run reads.
        question: about each of the rows' tokens.
        final: what the question's tokens or distances are from, where it needs any.
    """

    def __init__(self, how: ReadPlan, question: Question | None, final: Final | None) -> None:
        asked = question.asked if question else None
        self._how = how
        self._question = question
        self._reader = how.reader(asked)
        # of what is neither part of a sum nor the residual, which alone may be compared with the final prediction
        compared = how.questions.compares("attn_out")
        self._others = how.direct(asked if asked is None or compared else replace(asked, final=None))
        self._terms = how.attribution.of(question.attributed) if how.attribution and question else None
        # [N] where the end of the model, of layers that may not be stored, is no number: nor is what was asked about it
        ended = final is None or (final.logsumexp.isfinite() & final.entropy.isfinite()).cpu().numpy()
        self._broken: NDArray[np.bool_] = np.logical_not(ended)
        self._read = how.places if how.walking is None else how.walking[1].sites.keys()

    def take(self, tap: str, layer: int, rows: Tensor) -> None:
        """Take [N, D] rows of a tap, in the order in which the model computes them."""
        if self._terms is not None:
            self._terms.take(tap, layer, rows)
        if is_head(tap):
            self._others.take(tap, layer, rows)
        elif (tap, layer) in self._read:
            summed = self._how.walking is not None or tap == "resid_post"
            (self._reader if summed else self._others).take(tap, layer, self._how.hidden(tap, layer, rows))

    def finish(self) -> dict[str, TapLens]:
        """The lens at every tap of the run."""
        for reader in (self._reader, self._others):
            reader.flush()
        done, terms = self._reader.done | self._others.done, self._terms.finish() if self._terms else {}
        for found in terms.values():  # the norm's factor at the end is in all of them
            self._broken = self._broken | np.isnan(found.values).any(axis=1)
        return {tap: self._tap(tap, layers, done, terms) for tap, layers in self._how.layers_of.items()}

    def _tap(self, tap: str, layers: tuple[int, ...], done: dict[Place, Read], terms: dict[Place, PlaceTerms]) -> TapLens:
        reads = [done[tap, layer] for layer in layers]
        kind = np.dtype(self._how.settings.logprobs)
        # a logprob below all that its type can say, down to minus infinity of a token that is ruled out, is the lowest of these
        lowest = np.float32(np.finfo(kind).min)
        logprobs: NDArray[Any] = np.maximum(np.stack([read.logprobs for read in reads]), lowest).astype(kind, copy=False)
        values = self._how.questions.values
        stats = [values(tap, self._question, done[tap, layer], terms.get((tap, layer))) for layer in layers]
        return TapLens(
            layers=layers,
            ids=np.stack([read.ids for read in reads]),
            logprobs=logprobs,
            logsumexp=np.where(self._broken, np.float32(np.nan), np.stack([read.logsumexp for read in reads])),
            entropy=np.stack([read.entropy for read in reads]),
            stats={name: np.stack([one[name] for one in stats]) for name in stats[0]},
        )
