"""``raylens run --dry-run``: what a run would take, from its corpus and a measured part of it (docs/decisions/0013)."""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from raylens.scheduler.chat import check_chat
from raylens.scheduler.corpus import Corpus
from raylens.scheduler.dry_run.advice import Advice, advise, size
from raylens.scheduler.dry_run.bill import Bill
from raylens.scheduler.dry_run.costs import Costs, Crew, Range
from raylens.scheduler.dry_run.extent import measure, sample
from raylens.scheduler.progress import Progress, duration
from raylens.scheduler.settings import RunSettings, check
from raylens.scheduler.settled import settled, with_stats
from raylens.scheduler.stopping import heeding
from raylens.scheduler.tracker import OPEN_BYTES
from raylens.scheduler.writer_process import helpers_here
from raylens.storage.cores import cores
from raylens.storage.counted import counted
from raylens.storage.layers import select_layers
from raylens.workers.preflight import inspect_model
from raylens.workers.source import fetch_weights
from raylens.workers.tracked import tracked_fields

if TYPE_CHECKING:
    from raylens.scheduler.dry_run.rehearsal import Rehearsal
    from raylens.scheduler.sizing import Share

#: Prompts of the corpus that are lensed to measure, at most.
SAMPLE = 64
#: Seconds between two words on how far the corpus is.
_TELL_SECONDS = 2.0


class Estimate(msgspec.Struct, frozen=True):
    """The cost of a run.

    Attributes:
        prompts, failures: of the run, and how many of them could not be tokenized or are too long.
        tokens: read by the model; with what it generates, if it never ends a sequence early.
        places: (tap, layer, position) read out.
        shards, actors: as the scheduler will cut and start them.
        store_bytes: of the run's folder.
        model_bytes: of the weights.
        host_bytes, gpu_bytes: that an actor holds at its highest; of the GPUs None where they are elsewhere.
        server_bytes: of results that the server holds at most.
        start_seconds: until the first prompt is read, and after the last is stored.
        work_seconds: of one actor as it was measured.
        seconds: of the whole run; None where its actors are on other machines than the one measured.
        measured: on what, and how much.
        advice: what would make the run cheaper.
    """

    prompts: int
    failures: int
    tokens: int
    places: int
    shards: int
    actors: int
    store_bytes: int
    model_bytes: int
    host_bytes: int
    gpu_bytes: int | None
    server_bytes: int
    start_seconds: float
    work_seconds: Range
    seconds: Range | None
    measured: str
    advice: list[Advice]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    def lines(self) -> list[str]:
        """For people."""
        failing = f" ({self.failures:,} will fail: empty, too long or unreadable)" if self.failures else ""
        found = [
            f"prompts  {self.prompts:,}{failing}",
            f"tokens   {self.tokens:,}",
            f"places   {self.places:,} (tap, layer, position)",
            f"shards   {self.shards:,}, for {counted(self.actors, 'actor')}",
            f"store    about {size(self.store_bytes)}",
            f"memory   about {size(self.host_bytes)} for each actor, {self._gpu()}; weights {size(self.model_bytes)}; "
            f"results in the server at most {size(self.server_bytes)}",
            f"time     {self._time()}",
            f"measured {self.measured}",
        ]
        expected = None if self.seconds is None else self.seconds.expected
        words = [one.line(self.places, self.store_bytes, expected) for one in self.advice]
        return [*found, *(f"cheaper  {line}" for line in words)]

    def _gpu(self) -> str:
        if self.gpu_bytes is None:
            return "GPU memory not known here"
        return f"{size(self.gpu_bytes)} of GPU memory" if self.gpu_bytes else "no GPU memory"

    def _time(self) -> str:
        if self.seconds is None:
            return (
                f"not known: the actors are on other machines; as measured here, one actor would take {_range(self.work_seconds)}"
            )
        return f"{_range(self.seconds)}, of which {duration(self.start_seconds)} to start and finish"


def _range(seconds: Range) -> str:
    return f"about {duration(seconds.expected)} ({duration(seconds.least)} to {duration(seconds.most)})"


def estimate(settings: RunSettings, corpus: Corpus, progress: Progress, stopping: Callable[[], bool]) -> Estimate:
    """Tokenize the whole corpus, lens a part of it, and work out what all of it takes.

    Raises:
        RaylensError: as the run itself would before its first result.
        KeyboardInterrupt: ``stopping`` said so.
    """
    tell = heeding(stopping, progress.stage)
    began = time.perf_counter()
    check(settings)
    tell("checking the corpus")
    summary = corpus.scan(heeding(stopping, progress.scanned), tracked_fields(settings.worker.lens.track))
    checked = time.perf_counter()
    tell("reading the model's configuration")
    from raylens.scheduler.dry_run.rehearsal import rehearse  # with torch, which takes a while

    facts = inspect_model(settings.worker)
    check_chat(summary, facts)
    preparing = time.perf_counter() - checked
    tell("starting Ray")
    from raylens.scheduler.cluster import check_reached, cluster, resources
    from raylens.scheduler.sizing import share

    with cluster(settings.ray, tell, stopping) as ours:
        check_reached(settings.redis, ours)
        parts = share(resources(), settings.actors, settings.gpus_per_actor)
    starting = time.perf_counter() - began
    worker = settled(with_stats(settings.worker, facts), facts, ours.gpus)
    extent = measure(corpus, summary.count, worker, facts, parts.actors, heeding(stopping, _now_and_then(tell)))
    prompts, threads = sample(corpus, extent, worker, SAMPLE), max(1, int(parts.cpus))
    fetch_weights(facts.source, heeding(stopping, progress.fetched))
    found = rehearse(worker, prompts, extent.prompts, parts.actors, threads, tell)
    # each actor imports and reads once more what this process did
    start = starting + preparing + found.load_seconds + found.warm_up_seconds
    writers = max(1, helpers_here(settings.writer_helpers))
    costs = Costs(found, start, _crew(parts, ours.gpus, extent.shards, writers))
    taps, layers = tuple(found.worker.certificate["run_taps"]), select_layers(worker.lens.layers, facts.n_layers)
    heads = found.worker.certificate.get("heads", {"count": 0, "layers": []})
    bill = Bill(extent, found, costs, taps, layers, heads["count"] * len(heads["layers"]), ours.here)
    return Estimate(
        prompts=extent.prompts,
        failures=extent.failures,
        tokens=extent.tokens,
        places=bill.places,
        shards=extent.shards,
        actors=parts.actors,
        store_bytes=bill.store_bytes(),
        model_bytes=found.worker.weight_bytes,
        host_bytes=found.host_bytes,
        gpu_bytes=found.gpu_bytes if found.gpu_bytes or not ours.gpus else None,
        server_bytes=min(OPEN_BYTES, bill.sent_bytes()),
        start_seconds=start,
        work_seconds=costs.work(extent.given, extent.positions),
        seconds=bill.seconds(),
        measured=_measured(found, threads),
        advice=advise(worker, bill, facts.n_layers),
    )


def _now_and_then(tell: Callable[[str], None]) -> Callable[[int], None]:
    """Tells how far the corpus is, not for every prompt."""
    tell("tokenizing")
    last = time.monotonic()

    def told(prompts: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            tell(f"tokenizing: {prompts:,} prompts so far")

    return told


def _crew(parts: "Share", gpus: float, shards: int, writers: int) -> Crew:
    """An actor without a shard does nothing; several on a GPU are taken to do together what one of them does."""
    actors = min(parts.actors, max(1, shards))
    if parts.gpus:
        return Crew(min(actors, max(1.0, gpus)), math.inf, writers)
    return Crew(actors, float(cores()), writers)


def _measured(found: "Rehearsal", threads: int) -> str:
    device = found.worker.certificate["device"]
    where = counted(threads, "CPU thread")
    if device != "cpu":
        import torch

        where = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    seconds = sum(call.seconds for call in found.calls)
    return f"{counted(found.stored.prompts, 'prompt')} in {seconds:.1f} s, in this process, with {where}"
