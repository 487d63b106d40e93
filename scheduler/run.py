"""A run from corpus to store: the one module that knows every stage."""

import importlib.metadata
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from raylens import __version__
from raylens.scheduler.broker import Broker
from raylens.scheduler.corpus import Corpus, CorpusSummary, Fingerprint
from raylens.scheduler.progress import Progress
from raylens.scheduler.settings import RunSettings, check
from raylens.scheduler.shards import shards
from raylens.scheduler.tracker import Tracker
from raylens.scheduler.writer_process import WriterProcess
from raylens.storage.durable import write_file
from raylens.storage.errors import BrokerError, ClusterError, InputError, ModelError
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import FORMAT, Manifest, create_or_resume
from raylens.storage.record import Failure, Prompt
from raylens.storage.stream import Stream
from raylens.storage.vocabulary import write_vocabulary
from raylens.workers.preflight import ModelFacts, inspect_model
from raylens.workers.publish import Receipt, publish
from raylens.workers.settings import WorkerSettings

#: Times the driver tries to reach the server before it goes on with other things.
_DRIVER_RETRIES = 3
#: Seconds the writer gets to commit what is complete.
_FINISH_SECONDS = 120.0

_PACKAGES = ("torch", "transformers", "accelerate", "ray", "redis", "msgpack", "numpy", "tokenizers")


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended: its name, and whether every prompt is in the ledger."""

    run: str
    complete: bool


def run_corpus(
    settings: RunSettings, corpus: Corpus, progress: Progress, stopping: Callable[[], bool] = lambda: False
) -> Outcome:
    """Lens a corpus into a store, or go on with what an earlier call left.

    Raises:
        RaylensError: the corpus, model, store or a service cannot be used; nothing that is stored is lost.
    """
    check(settings)
    progress.stage("checking the corpus")
    summary = corpus.scan(_scanned(progress, stopping))
    progress.stage("reading the model's configuration")
    facts = inspect_model(settings.worker)
    if summary.has_messages and not facts.has_chat_template:
        raise ModelError(
            f"--model {settings.worker.model.source}: has no chat template for prompts with messages; give --chat-template FILE"
        )
    folder, wanted = _plan(settings, corpus, summary, facts)
    with ExitStack() as stack:
        stack.enter_context(folder.lock())
        manifest = create_or_resume(folder, wanted)
        if not folder.vocabulary.exists():
            write_vocabulary(folder.vocabulary, facts.vocabulary)
        ledger = Ledger(folder)
        ledger.refresh()
        progress.start(manifest.name, manifest.prompts, ledger.count)
        if ledger.count == manifest.prompts or stopping():
            return Outcome(manifest.name, complete=ledger.count == manifest.prompts)
        complete = _work(stack, settings, corpus, summary, folder, manifest, ledger, progress, stopping)
    return Outcome(manifest.name, complete)


def _scanned(progress: Progress, stopping: Callable[[], bool]) -> Callable[[int], None]:
    """Shows how far the check of the corpus is, and ends it when the user wants to stop."""

    def scanned(prompts: int) -> None:
        progress.scanned(prompts)
        if stopping():
            raise KeyboardInterrupt

    return scanned


def _work(
    stack: ExitStack,
    settings: RunSettings,
    corpus: Corpus,
    summary: CorpusSummary,
    folder: RunFolder,
    manifest: Manifest,
    ledger: Ledger,
    progress: Progress,
    stopping: Callable[[], bool],
) -> bool:
    # imported here, so that bad input is told before Ray's second of import
    from raylens.scheduler.cluster import cluster, share
    from raylens.scheduler.dispatch import Dispatch
    from raylens.scheduler.pool import Pool

    broker = stack.enter_context(Broker(settings.redis))
    progress.stage("starting Ray")
    one_host = stack.enter_context(cluster(settings.ray))
    if settings.redis == "embedded" and not one_host:
        raise ClusterError("the Ray cluster has other machines, which the embedded server does not reach; give --redis URL")
    writer = stack.enter_context(WriterProcess(folder, broker.url))
    stream = Stream(broker.url, manifest.uid, _DRIVER_RETRIES)
    worker_settings, batch_tokens = _sized(settings.worker)
    parts = share(settings.actors, settings.gpus_per_actor)
    progress.stage(f"loading the model in {parts.actors} actor{'s' if parts.actors > 1 else ''}")
    pool = Pool(worker_settings, manifest.uid, broker.url, parts)
    fresh = shards(_remaining(corpus, summary, ledger), summary.count, parts.actors, 2 * batch_tokens)
    tracker = Tracker(fresh, ledger, stream, _giver_up(stream, manifest.uid), settings.worker.lens.positions != "last")
    dispatch = Dispatch(pool, tracker, writer, broker, progress, lambda found: _keep_certificate(folder, found), stopping)
    complete = dispatch.run()
    progress.stage("finishing")
    pool.stop()
    writer.finish(_FINISH_SECONDS)
    ledger.refresh()
    if complete:
        _drop(stream)
    return complete


def _sized(settings: WorkerSettings) -> tuple[WorkerSettings, int]:
    """The batch size that fits the cluster's devices, unless the user chose one."""
    import ray

    if settings.input.batch_tokens is not None:
        return settings, settings.input.batch_tokens
    tokens = 4096 if ray.cluster_resources().get("GPU", 0) else 512
    return msgspec.structs.replace(settings, input=msgspec.structs.replace(settings.input, batch_tokens=tokens)), tokens


def _plan(settings: RunSettings, corpus: Corpus, summary: CorpusSummary, facts: ModelFacts) -> tuple[RunFolder, Manifest]:
    name = settings.name or f"{_slug(facts.source.label)}-{summary.fingerprint[:8]}"
    worker = settings.worker
    identity: dict[str, dict[str, Any]] = {
        "model": {
            "weights": facts.source.fingerprint[:16] or f"{facts.source.path}@{facts.commit}",
            "dtype": worker.model.dtype,
            "tokenizer": facts.tokenizer_hash,
        },
        "lens": {"kind": "logit", "component_norm": "own", **msgspec.to_builtins(worker.lens)},
        "input": {
            "max_tokens": worker.input.max_tokens,
            "on_long": worker.input.on_long,
            "chat_template": facts.chat_template_hash if summary.has_messages else None,
        },
        "corpus": {"prompts": summary.count, "fingerprint": summary.fingerprint},
    }
    manifest = Manifest(
        format=FORMAT,
        name=name,
        uid=secrets.token_hex(8),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=identity,
        prompts=summary.count,
        vocabulary_size=facts.vocabulary_size,
        sources={"model": worker.model.source, "label": facts.source.label, "revision": facts.commit, "corpus": corpus.name},
        versions={"raylens": __version__, **{package: importlib.metadata.version(package) for package in _PACKAGES}},
    )
    return RunFolder(runs_folder(settings.store) / name), manifest


def _slug(label: str) -> str:
    return (
        "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in label.lower()).strip(".-")[:60]
        or "run"
    )


def _remaining(corpus: Corpus, summary: CorpusSummary, ledger: Ledger) -> Iterator[Prompt]:
    """The prompts that are not in the ledger, checking on the way that the corpus is still the one that was scanned.

    Raises:
        InputError: it changed.
    """
    fingerprint = Fingerprint()
    for prompt in corpus.prompts():
        fingerprint.update(prompt)
        if prompt.index not in ledger:
            yield prompt
    if fingerprint.hexdigest() != summary.fingerprint:
        raise InputError(corpus.name, "the corpus changed while it was read", "run again when nothing writes to it")


def _giver_up(stream: Stream, run: str) -> Callable[[Failure], Receipt]:
    return lambda failure: publish(stream, run, failure)


def _keep_certificate(folder: RunFolder, certificate: dict[str, object]) -> None:
    if not folder.certificate.exists():
        write_file(folder.certificate, orjson.dumps(certificate, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _drop(stream: Stream) -> None:
    """A finished run leaves no key; if the server is gone, so is the key."""
    try:
        stream.drop()
    except BrokerError:
        return
    finally:
        stream.close()
