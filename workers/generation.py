"""Generation with the lens at every step: the ids that are probed are the ids that are sampled, each read once by the model.

The hidden states of several steps are kept where they were computed and read out together: a large product is far faster a row.
Shapes: B prompts, D width, N rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raylens.storage.generated import Generated, text_of
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary
from raylens.workers.certify_steps import find_way
from raylens.workers.lens import Lens
from raylens.workers.lenses.interface import Place
from raylens.workers.reading import PENDING_BYTES
from raylens.workers.sampling import Sampler
from raylens.workers.settings import GenerationSettings
from raylens.workers.stepping import end_ids, run_steps
from raylens.workers.tokenize import Tokenized

#: Decimals of the stored logprobs.
DECIMALS = 6


class Generation:
    """Generates as one run's settings have it.

    Args:
        model: in evaluation mode; the generation settings of its checkpoint are left aside.
        tokenizer: of the model.
        lens: reads the steps out, of the model as it changes it.
        settings: of the generation.
        vocabulary: token id -> bytes.

    Raises:
        ModelError: the model cannot be run token by token.
    """

    def __init__(self, model: Any, tokenizer: Any, lens: Lens, settings: GenerationSettings, vocabulary: Vocabulary) -> None:
        self._model = model
        self._lens = lens
        self.settings = settings
        self._vocabulary = vocabulary
        self._ends = end_ids(model, tokenizer)
        self._steps = find_way(model)
        self._sampler = Sampler(settings)

    @property
    def padded(self) -> bool:
        """Whether a batch may hold prompts of different lengths."""
        return self._steps.way.padded

    @property
    def certificate(self) -> dict[str, Any]:
        """What was measured."""
        steps = self._steps
        return {"steps": str(steps.way), "error": steps.error, "allowed": steps.allowed, "ends": list(self._ends)}

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Tokenized]) -> list[Record | ValueError]:
        """A record for each prompt, or a ValueError where the model's numbers are not finite."""
        batch = _Written(self._lens, self._sampler, self._ends, prompts)
        run_steps(
            self._model,
            self._steps.way,
            [prompt.ids for prompt in prompts],
            self.settings.tokens,
            self._ends,
            batch.choose,
            self._lens.sites,
            batch.take,
            self._lens.intervention,
        )
        batch.read()
        return [self._record(prompt, batch, number) for number, prompt in enumerate(prompts)]

    def _record(self, prompt: Tokenized, batch: "_Written", number: int) -> Record | ValueError:
        new, logprobs = batch.ids[number], batch.logprobs[number]
        ended = new[-1] in self._ends
        text = text_of(new[:-1] if ended else new, self._vocabulary)
        ids, start = prompt.ids + new, len(prompt.ids)
        whole = replace(prompt, text=prompt.text + text, ids=ids, positions=list(range(start - 1, len(ids) - 1)))
        record = self._lens.record(whole, batch.taps(number))
        if isinstance(record, ValueError):
            return record
        if not all(map(math.isfinite, logprobs)):
            return self._lens.not_finite("logits")
        generated = Generated(
            start=start,
            finish="eos" if ended else "length",
            text=text,
            logprobs=[round(value, DECIMALS) for value in logprobs],
            sampling_logprobs=[round(value, DECIMALS) for value in batch.sampling_logprobs[number]],
            sample=prompt.prompt.sample,
        )
        return replace(record, generated=generated)


class _Written:
    """What B prompts have come to so far: tokens, and the lens of the steps that were read out.

    Attributes:
        ids, logprobs, sampling_logprobs: of each prompt's new tokens.
    """

    def __init__(self, lens: Lens, sampler: Sampler, ends: tuple[int, ...], prompts: Sequence[Tokenized]) -> None:
        self._lens = lens
        self._sampler = sampler
        self._ends = ends
        self._prompts = prompts
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.sampling_logprobs: list[list[float]] = [[] for _ in prompts]
        self._live = list(range(len(prompts)))  # numbers of the prompts that are not done
        self._rows: dict[Place, list[Tensor]] = {}  # of the steps that are not read out yet, [B, D] each
        self._kept: list[int] = []  # which of these rows are of prompts that were not done
        self._following: list[int] = []  # the token after each of these
        self._bytes = self._steps = 0
        self._owners: list[int] = []  # the prompt of each row that was read out or is kept
        self._read: list[dict[str, TapLens]] = []

    def take(self, tap: str, layer: int, rows: Tensor) -> None:
        """Keep what a hook saw."""
        self._rows.setdefault((tap, layer), []).append(rows)
        self._bytes += rows.numel() * rows.element_size()

    def choose(self, logits: Tensor, step: int) -> list[int]:
        """The next token of each prompt; see stepping.Choose."""
        live = self._live
        if not live:  # on some devices generate notices a step later that all are done
            return [0] * len(self._prompts)
        rows = logits if len(live) == len(logits) else logits[live]
        choice = self._sampler(rows, [self._prompts[number].prompt.id for number in live], step)
        ids = [0] * len(self._prompts)
        for number, token, logprob, drawn in zip(live, choice.ids, choice.logprobs, choice.sampling_logprobs, strict=True):
            ids[number] = token
            self.ids[number].append(token)
            self.logprobs[number].append(logprob)
            self.sampling_logprobs[number].append(drawn)
        self._kept += [self._steps * len(self._prompts) + number for number in live]
        self._following += choice.ids
        self._owners += live
        self._steps += 1
        self._live = [number for number in live if ids[number] not in self._ends]
        if self._bytes >= PENDING_BYTES:
            self.read()
        return ids

    def read(self) -> None:
        """Read out the steps that are waiting."""
        if self._kept:
            kept, rows = torch.tensor(self._kept), self._rows
            chosen = {place: torch.cat(rows.pop(place))[kept] for place in list(rows)}
            tracked = [self._prompts[number].tracked for number in self._owners[-len(kept) :]]
            self._read.append(self._lens.taps(chosen, self._following, tracked))
        self._rows, self._kept, self._following = {}, [], []
        self._bytes = self._steps = 0

    def taps(self, number: int) -> dict[str, TapLens]:
        """The lens of one prompt's steps, once all are read out."""
        own = np.array(self._owners) == number
        parts, start = [], 0
        for read in self._read:
            stop = start + next(iter(read.values())).ids.shape[1]
            parts.append({name: lens.part(np.flatnonzero(own[start:stop])) for name, lens in read.items()})
            start = stop
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: list[TapLens]) -> TapLens:
    """Steps after steps."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("ids", "logprobs", "logsumexp", "entropy")
    }
    stats = {name: np.concatenate([part.stats[name] for part in parts], axis=1) for name in parts[0].stats}
    return TapLens(parts[0].layers, stats=stats, **arrays)
