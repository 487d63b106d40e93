"""One loaded model that turns prompts into records and failures. Runs under a debugger with neither Ray nor Redis."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from raylens.storage.errors import UsageError, named_line
from raylens.storage.layers import select_layers
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.vocabulary import Vocabulary, token_text
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.attribution import Attribution, find_attribution
from raylens.workers.batching import batches, pad, position_switch
from raylens.workers.blocks import input_device
from raylens.workers.chosen import chosen_places
from raylens.workers.generation import Generation
from raylens.workers.heads import Heads, certificate_of, find_heads
from raylens.workers.interventions.opening import open_intervention
from raylens.workers.lens import Lens
from raylens.workers.lenses.interface import Shape
from raylens.workers.lenses.opening import open_lens
from raylens.workers.lenses.source import LensSource, lens_digest, lens_taps, parse_lens
from raylens.workers.metrics import ATTRIBUTIONS
from raylens.workers.model import load_model, require_device
from raylens.workers.process_settings import untouched_settings
from raylens.workers.settings import CPU_BATCH_TOKENS, WorkerSettings
from raylens.workers.token_bytes import vocabulary_bytes
from raylens.workers.tokenize import Tokenized, Tokenizer, longest_input, text_ids
from raylens.workers.tracked import Tracked

#: Who says that memory of the CPU is short; for that torch raises a plain RuntimeError.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


class Worker:
    """A model with its hooks, ready for prompts.

    Attributes:
        certificate: what was measured of the model (adapter.py), and of what this run does with it.
        vocabulary: token id -> bytes.

    Args:
        settings: what is asked for.
        loaded: the model and its tokenizer, where they are there already.

    Raises:
        ModelError: the model cannot be loaded or lensed.
    """

    @untouched_settings()
    def __init__(self, settings: WorkerSettings, loaded: tuple[Any, Any] | None = None) -> None:
        self._settings = settings
        self._model, tokenizer = loaded or load_model(settings.model)
        adapter, config = adapt(self._model, settings.lens.top_k), self._model.config.get_text_config()
        if settings.lens.logprobs == "float32":  # running sums are within 2e-4, and each tap read by itself within 1e-4
            adapter = replace(adapter, walk=None)
        source = parse_lens(settings.lens.lens)
        taps = adapter.taps(lens_taps(source, settings.lens.taps))
        layers = select_layers(settings.lens.layers, len(adapter.sites))
        shape, size = Shape(len(adapter.sites), int(config.hidden_size)), int(config.vocab_size)
        hidden = open_lens(source, shape, chosen_places(taps, layers), settings.lens.lens_digest)
        self._device = input_device(self._model)
        new = settings.generation.tokens if settings.generation else 0
        limit = longest_input(config, tokenizer)
        self._switch = position_switch(config)
        self._tokenizer = Tokenizer(tokenizer, settings.input, settings.lens.positions, limit, size, new)
        self.vocabulary: Vocabulary = vocabulary_bytes(tokenizer, size)
        self._tracked = Tracked(settings.lens.track, tokenizer, self.vocabulary)
        self._intervention = open_intervention(self._model, adapter, settings.edits, partial(text_ids, tokenizer), self._device)
        chosen = select_layers(settings.lens.heads, len(adapter.sites)) if settings.lens.heads else ()
        heads = find_heads(self._model, adapter, chosen) if chosen else {}
        attribution = find_attribution(self._model, adapter) if set(settings.lens.stats or ()) & set(ATTRIBUTIONS) else None
        self._lens = Lens(
            adapter, settings.lens, layers, taps, len(self._tracked), hidden, self._intervention, heads, attribution
        )
        self.certificate = self._certified(adapter, source, taps, heads, attribution)
        self._generation: Generation | None = None
        if settings.generation is not None:
            self._generation = Generation(self._model, tokenizer, self._lens, settings.generation, self.vocabulary)
            self.certificate["generation"] = self._generation.certificate

    def _certified(
        self, adapter: Adapter, lens: LensSource, taps: tuple[str, ...], heads: dict[int, Heads], attribution: Attribution | None
    ) -> dict[str, Any]:
        """What was measured of the model, and of what this run does with it."""
        file = {"kind": lens.kind, "file": lens_digest(lens)} if lens.path is not None else {}
        found = {
            **adapter.certificate,
            "lens": {**adapter.certificate["lens"], "path": self._lens.path, **file},
            "run_taps": list(taps),
            "device": str(self._device),
        }
        if heads:
            found["heads"] = certificate_of(heads)
        if attribution is not None:
            found["attribution"] = attribution.certificate
        if self._settings.edits:
            found["intervention"] = {"edits": len(self._settings.edits), "sources": self._intervention.digest}
        return found

    def run(self, prompts: Sequence[Prompt]) -> Iterator[Record | Failure]:
        """The outcome of each prompt, failures of tokenization first, then batch by batch; exactly one a prompt.

        Raises:
            DeviceError: a prompt broke the GPU, which would fail all that follow it.
        """
        ready: list[Tokenized] = []
        for prompt in prompts:
            found = self.tokenize(prompt)
            if isinstance(found, Failure):
                yield found
            else:
                ready.append(found)
        yield from self.read(ready)

    def tokenize(self, prompt: Prompt) -> Tokenized | Failure:
        """The prompt as ``read`` takes it, or why it cannot be read."""
        found = self._tokenizer(prompt)
        if isinstance(found, Failure):
            return found
        if (problem := self._intervention.problem(len(found.ids))) is not None:
            return Failure(prompt.id, prompt.index, "input", f"{len(found.ids)} tokens: {problem}", prompt.metadata)
        try:
            return replace(found, tracked=self._tracked.of(prompt.metadata))
        except Exception as error:  # noqa: BLE001  a tokenizer may raise anything; one bad prompt never stops a run
            text = str(error) if isinstance(error, UsageError) else f"--track: {named_line(error)}"
            return Failure(prompt.id, prompt.index, "input", text[:500], prompt.metadata)

    def read(self, ready: list[Tokenized]) -> Iterator[Record | Failure]:
        """The outcome of each tokenized prompt, batch by batch; raises what ``run`` does."""
        for batch in self._batches(ready):
            yield from self._run_batch(batch)

    def products(self, taps: tuple[str, ...], layers: tuple[int, ...]) -> int:
        """Rows a token that are multiplied with the unembedding, were these taps and layers chosen."""
        return self._lens.products(taps, layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights."""
        return sum(weight.numel() * weight.element_size() for weight in self._model.parameters())

    def _batches(self, ready: list[Tokenized]) -> Iterator[list[Tokenized]]:
        most = self._settings.input.batch_tokens or CPU_BATCH_TOKENS
        if self._generation is None:
            return batches(ready, most, switch=self._switch)
        return batches(ready, most, self._generation.settings.tokens, self._generation.padded, self._switch)

    def _run_batch(self, prompts: list[Tokenized]) -> Iterator[Record | Failure]:
        """One batch; if it fails, its halves, down to the one prompt that is at fault."""
        outcomes = self._attempt(prompts)
        if not isinstance(outcomes, Exception):
            for prompt, outcome in zip(prompts, outcomes, strict=True):
                if isinstance(outcome, Record):
                    yield replace(outcome, tokens=[token_text(self.vocabulary, token) for token in outcome.token_ids])
                else:
                    yield self._failure(prompt, outcome)
        elif len(prompts) == 1:
            yield self._failure(prompts[0], outcomes)
        else:
            middle = len(prompts) // 2
            yield from self._run_batch(prompts[:middle])
            yield from self._run_batch(prompts[middle:])

    @untouched_settings()
    def _attempt(self, prompts: list[Tokenized]) -> list[Record | ValueError] | Exception:
        """The outcomes of a batch, or what the model raised, without the frames that would keep its tensors in memory."""
        try:
            if self._generation is not None:
                return self._generation(prompts)
            return self._lens(pad(prompts, self._device, once=not self._settings.edits))
        except Exception as error:  # noqa: BLE001  a model may raise anything; one bad prompt never stops a run
            error.__cause__ = error.__context__ = None
            failed = error.with_traceback(None)
        if isinstance(failed, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        for device in {weight.device for weight in self._model.parameters() if weight.is_cuda}:
            require_device(device)
        return failed

    def _failure(self, tokenized: Tokenized, error: Exception) -> Failure:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_ALLOCATOR in str(error)
        kind = "memory" if short else "model"
        prompt = tokenized.prompt
        return Failure(prompt.id, prompt.index, kind, f"{len(tokenized.ids)} tokens: {named_line(error)}", prompt.metadata)
