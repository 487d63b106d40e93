"""A measured part of a run: some of its prompts lensed in this process and stored in a temporary folder.

What an actor and the writer do is rehearsed as they do it; Ray and the server have no part in it.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import torch

from raylens.scheduler.dry_run.stored import Stored
from raylens.scheduler.shards import SHARD_BATCHES, shards
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.temporary import temporary
from raylens.workers.publish import payload_of
from raylens.workers.settings import WorkerSettings
from raylens.workers.tokenize import Tokenized
from raylens.workers.worker import Worker

#: Seconds after which no further call is begun, and what one call should take at most, unless it has fewer tokens than this:
#: a product of few rows is slower a row.
SECONDS, CALL_SECONDS, FEWEST_TOKENS = 15.0, 5.0, 64
#: Calls from which a spread can be told; where the prompts make fewer, they are gone through again.
FEWEST_CALLS = 3
#: Calls whose prompts are read once more, with other positions, and how many those are where the run lenses one.
CONTRASTS, SEVERAL = 3, 4
#: Tokens generated after a prompt, at most; later steps are taken to cost as much.
STEPS = 32


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an actor: prompts' tokens, positions lensed, and seconds until the results are ready to be sent."""

    tokens: int
    positions: int
    seconds: float


@dataclass(slots=True)
class Rehearsal:
    """What was measured.

    Attributes:
        worker: with the model loaded.
        stored: what became of the results.
        load_seconds, warm_up_seconds: of the model, and of the first prompt beyond what it takes the second time.
        calls: as the run makes them.
        contrasts: their first prompts with other positions, which tells what a position costs; none where the run generates.
        host_bytes, gpu_bytes: the most that this process, and torch on its GPUs, have held.
    """

    worker: Worker
    stored: Stored
    load_seconds: float
    warm_up_seconds: float = 0.0
    calls: list[Call] = field(default_factory=list)
    contrasts: list[Call] = field(default_factory=list)
    host_bytes: int = 0
    gpu_bytes: int = 0


def rehearse(
    settings: WorkerSettings, prompts: list[Prompt], count: int, actors: int, threads: int, told: Callable[[str], None]
) -> Rehearsal:
    """Load the model and lens these prompts, or as many of them as there is time for.

    Args:
        settings: as an actor gets them.
        prompts: in an order whose beginning is like the whole.
        count, actors: prompts and actors of the run.
        threads: CPU threads for torch, as an actor gets them.
        told: called with what is done now.

    Raises:
        ModelError: the model cannot be loaded or lensed.
    """
    torch.set_num_threads(threads)
    if settings.generation is not None:
        fewer = msgspec.structs.replace(settings.generation, tokens=min(STEPS, settings.generation.tokens))
        settings = msgspec.structs.replace(settings, generation=fewer)
    told("loading the model")
    began = time.perf_counter()
    worker = Worker(settings)
    with temporary(tempfile.TemporaryDirectory, prefix="raylens-dry-run-") as folder:
        found = Rehearsal(worker, Stored(Path(folder), worker), time.perf_counter() - began)
        _Calls(settings, found, count, actors).make(prompts, told)
        found.stored.finish()
    scale = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    found.host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    found.gpu_bytes = sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    return found


class _Calls:
    """Makes the calls of a rehearsal: as large as a run's, but of one batch, and not so large that there is time for few."""

    def __init__(self, settings: WorkerSettings, found: Rehearsal, count: int, actors: int) -> None:
        self._settings = settings
        self._found = found
        self._count, self._actors = count, actors
        self._made: list[list[Tokenized]] = []
        self._tokens_a_second = 1.0

    def make(self, prompts: list[Prompt], told: Callable[[str], None]) -> None:
        """All calls that there is time for, and one at least."""
        self._warm_up(prompts)
        self._go_through(prompts, told, self._found.stored)
        while self._made and len(self._made) < FEWEST_CALLS and self._has_time():
            self._go_through(prompts, told, None)
        if self._made and self._settings.generation is None:
            told("measuring what a position costs")
            self._found.contrasts.append(self._call([_contrasted(one) for ready in self._made[:CONTRASTS] for one in ready])[0])

    def _has_time(self) -> bool:
        return sum(call.seconds for call in self._found.calls) < SECONDS

    def _go_through(self, prompts: list[Prompt], told: Callable[[str], None], stored: Stored | None) -> None:
        done = 0
        while done < len(prompts) and self._has_time():
            told(f"measuring: {done:,} of {len(prompts):,} prompts of the sample")
            chosen = self._next(prompts[done:])
            done += len(chosen)
            found = [self._found.worker.tokenize(prompt) for prompt in chosen]
            ready = [one for one in found if isinstance(one, Tokenized)]
            outcomes: list[Record | Failure] = [one for one in found if isinstance(one, Failure)]
            seconds = 0.0
            if ready:
                call, read = self._call(ready)
                outcomes += read
                seconds, self._tokens_a_second = call.seconds, call.tokens / call.seconds
                self._made.append(ready)
                self._found.calls.append(call)
            if stored is not None:
                stored.add(outcomes, seconds / self._actors)

    def _warm_up(self, prompts: list[Prompt]) -> None:
        """Read the first prompt that can be read, and again once all is warm."""
        found = (self._found.worker.tokenize(prompt) for prompt in prompts)
        ready = next((one for one in found if isinstance(one, Tokenized)), None)
        if ready is not None:
            first, second = (self._call([ready])[0] for _ in range(2))
            self._found.warm_up_seconds = max(0.0, first.seconds - second.seconds)
            self._tokens_a_second = second.tokens / second.seconds

    def _next(self, waiting: list[Prompt]) -> list[Prompt]:
        batch, generation = self._settings.input.batch_tokens or 1, self._settings.generation
        if generation is not None:  # what a step costs depends on how many prompts take it together
            most, new = SHARD_BATCHES * batch, generation.tokens
        else:
            most, new = min(batch, max(FEWEST_TOKENS, int(self._tokens_a_second * CALL_SECONDS))), 0
        return next(shards(waiting, self._count, self._actors, most, new)).prompts

    def _call(self, ready: list[Tokenized]) -> tuple[Call, list[Record | Failure]]:
        began = time.perf_counter()
        outcomes = list(self._found.worker.read(ready))
        for outcome in outcomes:
            payload_of(outcome)  # as an actor does before it sends them
        seconds = time.perf_counter() - began
        positions = sum(len(one.positions) for one in outcomes if isinstance(one, Record))
        return Call(sum(len(one.ids) for one in ready), positions, max(seconds, 1e-9)), outcomes


def _contrasted(one: Tokenized) -> Tokenized:
    """The same prompt with fewer positions, or with more if it has few."""
    few = len(one.positions) < SEVERAL
    return replace(one, positions=list(range(max(0, len(one.ids) - SEVERAL), len(one.ids))) if few else one.positions[-1:])
