"""A run from corpus to store: the one module that knows every stage."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import msgspec

from raylens.scheduler.broker import Broker
from raylens.scheduler.chat import check_chat
from raylens.scheduler.corpus import Corpus, CorpusSummary
from raylens.scheduler.external_writer import ExternalWriter
from raylens.scheduler.heartbeat import Heartbeat
from raylens.scheduler.identity import manifest_of
from raylens.scheduler.progress import Progress
from raylens.scheduler.samples import samples_of
from raylens.scheduler.settings import RunSettings, check
from raylens.scheduler.settled import settled, with_stats
from raylens.scheduler.shards import cut, estimated_positions
from raylens.scheduler.stopping import NotBegun, heeding
from raylens.scheduler.tracker import Tracker, open_bytes
from raylens.scheduler.writer_process import WriterProcess
from raylens.storage.certificate import write_certificate
from raylens.storage.counted import counted
from raylens.storage.durable import store_errors
from raylens.storage.errors import BrokerError, StoreError
from raylens.storage.layout import RunFolder, check_writable, runs_folder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import Manifest, check_kept, create_or_resume, read_manifest
from raylens.storage.record import Prompt
from raylens.storage.stream import CHECK_SECONDS, RETRIES, Stream, check_server, stream_key
from raylens.storage.tally import Tally
from raylens.storage.vocabulary import write_vocabulary
from raylens.workers.preflight import ModelFacts, inspect_model
from raylens.workers.publish import publish
from raylens.workers.source import fetch_weights
from raylens.workers.tracked import tracked_fields

#: Prompts in a row that are stored already, and read past, between two looks at everything else.
PASSED_EVERY = 8192


class RunResult(msgspec.Struct, frozen=True):
    """How a run ended: its name, and whether every prompt is in the ledger."""

    run: str
    complete: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """A run that may begin: what is asked, what was found, and where its results go."""

    settings: RunSettings
    corpus: Corpus
    summary: CorpusSummary
    facts: ModelFacts
    folder: RunFolder
    manifest: Manifest
    ledger: Ledger


def run_corpus(
    settings: RunSettings, corpus: Corpus, progress: Progress, stopping: Callable[[], bool] = lambda: False
) -> RunResult:
    """Lens a corpus into a store, or go on with what an earlier call left.

    Raises:
        RaylensError: the corpus, model, store or a service cannot be used; nothing that is stored is lost.
        NotBegun: ``stopping`` said so before there was a run.
        KeyboardInterrupt: it said so while Ray started or the model was fetched.
    """
    check(settings)
    check_writable(settings.store)
    try:
        summary, facts = _read(settings, corpus, progress, stopping)
    except KeyboardInterrupt:
        raise NotBegun from None
    settings = msgspec.structs.replace(settings, worker=with_stats(settings.worker, facts))
    wanted = manifest_of(settings, corpus, summary, facts)
    folder = RunFolder(runs_folder(settings.store) / wanted.name)
    if settings.redis != "embedded" and (settings.fresh or not folder.is_run):
        check_server(settings.redis)  # before a run is made or moved aside for nothing
    if settings.fresh and folder.root.exists():
        _move_aside(folder, settings.redis, progress)
    with folder.lock():
        tally = Tally(folder)
        tally.follow()
        ledger, before = tally.ledger, _uid(folder)
        manifest = _opened(folder, ledger, wanted, facts)
        if before != manifest.uid:  # nothing of that one was stored
            _drop(settings.redis, before, progress, retries=0)
        progress.start(manifest.name, manifest.prompts, ledger.count, tally.failures.total())
        complete = was_complete = ledger.count == manifest.prompts
        if not complete and not stopping():
            with Heartbeat(folder) as heartbeat:
                complete = _work(_Plan(settings, corpus, summary, facts, folder, manifest, ledger), progress, heartbeat, stopping)
        if complete:  # also where a driver was killed after the last commit
            _drop(settings.redis, manifest.uid, progress, retries=0 if was_complete else RETRIES)
    return RunResult(manifest.name, complete)


def _read(
    settings: RunSettings, corpus: Corpus, progress: Progress, stopping: Callable[[], bool]
) -> tuple[CorpusSummary, ModelFacts]:
    """What corpus and model are."""
    progress.stage("checking the corpus")
    summary = corpus.scan(heeding(stopping, progress.scanned), tracked_fields(settings.worker.lens.track))
    progress.stage("reading the model's configuration")
    facts = inspect_model(settings.worker)
    check_chat(summary, facts)
    if stopping():  # or an earlier run would be moved aside for one that does not begin
        raise KeyboardInterrupt
    return summary, facts


def _opened(folder: RunFolder, ledger: Ledger, wanted: Manifest, facts: ModelFacts) -> Manifest:
    """The manifest of the run, new or as it was begun, with the vocabulary beside it."""
    ledger.check_whole()
    if ledger.count:
        check_kept(folder)
    with store_errors(folder.root):
        manifest = create_or_resume(folder, wanted)
        if not folder.vocabulary.exists():
            write_vocabulary(folder.vocabulary, facts.vocabulary)
    return manifest


def _move_aside(folder: RunFolder, redis: str, progress: Progress) -> None:
    aside = folder.move_aside()
    progress.stage(f"the earlier run {folder.root.name} is now {aside.root.name}")
    _drop(redis, _uid(aside), progress, retries=0)


def _uid(folder: RunFolder) -> str | None:
    """What names the run's stream; None without a manifest, or with a damaged one, which may be why the user begins anew."""
    with suppress(StoreError):
        return read_manifest(folder).uid
    return None


def _work(plan: _Plan, progress: Progress, heartbeat: Heartbeat, stopping: Callable[[], bool]) -> bool:
    """Start server, Ray, writer and actors, and run what is not in the ledger; whether all of it is then."""
    # imported here, so that bad input is told before Ray's second of import
    from raylens.scheduler.cluster import check_reached, cluster, resources
    from raylens.scheduler.dispatch import Dispatch
    from raylens.scheduler.nodes import ANSWER_SECONDS, Nodes
    from raylens.scheduler.pool import Pool
    from raylens.scheduler.run_metrics import RunMetrics
    from raylens.scheduler.sizing import room, share

    settings, run = plan.settings, plan.manifest.uid
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(settings.redis))
        progress.stage("starting Ray")
        ended = heartbeat.or_cancelled(stopping)
        ours = stack.enter_context(
            cluster(settings.ray, progress.stage, heartbeat.while_waiting("waiting for a node of the cluster", ended))
        )
        check_reached(settings.redis, ours)
        nodes = Nodes()
        nodes.check(ANSWER_SECONDS)
        stream = Stream(broker.url, run, retries=0, seconds=CHECK_SECONDS)
        stack.callback(stream.close)
        writer = stack.push(_writer(plan, broker.url))
        worker = settled(settings.worker, plan.facts, ours.gpus)
        host = next(iter(ours.hosts)) if settings.redis == "embedded" else None  # no machine that joins would reach it
        parts = share(resources(host), settings.actors, settings.gpus_per_actor, host)
        if ours.here:  # the actors of other machines fetch the model themselves
            waiting = heartbeat.while_waiting("fetching the model from the hub", ended)
            fetch_weights(plan.facts.source, heeding(waiting, progress.fetched))
        progress.stage(f"loading the model in {counted(parts.actors, 'actor')}")
        pool = stack.enter_context(Pool(worker, run, broker.url, parts, nodes))
        passing = heartbeat.while_waiting("reading past the prompts that are stored", ended)
        fresh = cut(_remaining(plan, progress, passing), plan.manifest.prompts - plan.ledger.count, parts.actors, worker)
        give_up = partial(publish, stream, run)
        positions, most = estimated_positions(worker), open_bytes(broker.memory().limit)
        tracker = Tracker(fresh, plan.manifest.prompts, plan.ledger, stream, give_up, positions, most)
        metrics = RunMetrics(plan.manifest.name, plan.manifest.prompts)
        loaded = partial(write_certificate, plan.folder)
        grown = None if settings.actors is not None else lambda: room(resources(host), parts)
        Dispatch(pool, tracker, writer, broker, progress, heartbeat, metrics, loaded, ended, grown).run()
        progress.stage("finishing")
        pool.stop()
        amiss = writer.finish()
    plan.ledger.refresh()
    complete = plan.ledger.count == plan.manifest.prompts
    if amiss and not complete:
        raise StoreError(f"{amiss}; what is stored stays, and the same command resumes from there")
    return complete


def _writer(plan: _Plan, redis: str) -> WriterProcess | ExternalWriter:
    if plan.settings.writer == "external":
        return ExternalWriter(plan.folder)
    plan.folder.wants_external_writer.unlink(missing_ok=True)  # or two writers would fence each other
    return WriterProcess(plan.folder, redis, plan.settings.writer_helpers)


def _remaining(plan: _Plan, progress: Progress, stopping: Callable[[], bool]) -> Iterator[Prompt]:
    """The prompts that are not in the ledger.

    Args:
        progress: told now and then how many that are there have been read past: of millions, it takes its time.
        stopping: asked as often; if so there are no more.

    Raises:
        InputError: the corpus is no longer what was scanned.
    """
    generation, passed = plan.settings.worker.generation, 0
    for prompt in plan.corpus.unchanged(plan.summary):
        for one in samples_of(prompt, generation.samples if generation else 1):
            if one.index not in plan.ledger:
                passed = 0
                yield one
                continue
            passed += 1
            if passed % PASSED_EVERY == 0:
                progress.passed(passed)
                if stopping():
                    return


def _drop(url: str, run: str | None, progress: Progress, retries: int) -> None:
    """A finished run leaves no key, also where the server is away for a while just now; an embedded one goes with all keys."""
    if url == "embedded" or run is None:
        return
    stream = Stream(url, run, retries, CHECK_SECONDS)
    try:
        stream.drop()
    except BrokerError as error:
        progress.waiting(f"if the server still holds {stream_key(run)}, it may be deleted: {error}")
    finally:
        stream.close()
