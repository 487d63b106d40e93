"""Fitting a lens, from corpus to files: the one module that knows every stage of it."""

import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson

from raylens import __version__
from raylens.scheduler.chat import check_chat
from raylens.scheduler.corpus import Corpus, CorpusSummary
from raylens.scheduler.new_folder import new_folder
from raylens.scheduler.process import ONE_AT_A_TIME
from raylens.scheduler.progress import Progress, choose
from raylens.scheduler.settings import check_actors
from raylens.scheduler.stopping import Stopping, heeding
from raylens.storage.durable import write_file
from raylens.storage.errors import ModelError
from raylens.storage.python_values import Settings
from raylens.workers.fitting.report import FitReport
from raylens.workers.fitting.settings import FitSettings, check
from raylens.workers.preflight import ModelFacts, inspect_model, load_config, load_tokenizer, pinned
from raylens.workers.settings import InputSettings, WorkerSettings, check_types
from raylens.workers.source import fetch_weights

_PACKAGES = ("torch", "transformers", "ray", "numpy", "tokenizers")
#: Of provenance.json.
_FORMAT = 1


class Actors(Settings, frozen=True):
    """Where it is fitted: as in ``RunSettings``."""

    actors: int | None
    gpus_per_actor: float
    ray: str


def fit_corpus(
    settings: FitSettings, corpus: Corpus, output: Path, actors: Actors, progress: Progress, stopping: Callable[[], bool]
) -> FitReport:
    """Fit a lens to a model on a corpus and write it into a new folder.

    Raises:
        RaylensError: the corpus, the model, the folder or the cluster cannot be used; nothing is left of the folder then.
        KeyboardInterrupt: the user stopped it; likewise.
    """
    check(settings)
    check_types(actors)
    check_actors(actors.actors, actors.gpus_per_actor)
    with new_folder("--output", output) as folder, ExitStack() as stack:
        progress.stage("checking the corpus")
        summary = corpus.scan(heeding(stopping, progress.scanned))
        progress.stage("reading the model's configuration")
        facts = inspect_model(WorkerSettings(settings.model))
        check_chat(summary, facts, "give texts instead")
        settings = msgspec.structs.replace(settings, model=pinned(settings.model, facts))
        # imported here, so that bad input is told before torch's and Ray's seconds of import
        from raylens.workers.fitting.rows import places
        from raylens.workers.fitting.saving import lens_option, save_linear, save_tuned

        fitted = places(settings.kind, facts.n_layers)
        if not fitted:
            raise ModelError("--kind linear: the model has one layer, whose output is the last; give --kind tuned")
        progress.stage("tokenizing")
        texts = _texts(settings, corpus, facts, heeding(stopping, progress.tokenized))
        from raylens.scheduler.cluster import cluster, resources
        from raylens.scheduler.fitters import Fitters
        from raylens.scheduler.nodes import ANSWER_SECONDS, Nodes
        from raylens.scheduler.sizing import share

        progress.stage("starting Ray")
        ours = stack.enter_context(cluster(actors.ray, progress.stage, stopping))
        Nodes().check(ANSWER_SECONDS)
        if ours.here:  # the actors of other machines fetch the model themselves
            fetch_weights(facts.source, heeding(stopping, progress.fetched))
        parts = share(resources(), actors.actors, actors.gpus_per_actor)
        fitters = Fitters(settings, texts.parts, fitted, parts, stopping)
        stack.callback(fitters.stop)
        progress.stage(f"fitting {len(fitted)} maps on {texts.tokens('fit'):,} tokens")
        fitters.run(progress.steps, progress.waiting)
        maps = fitters.maps()
        report = FitReport(
            lens_option(settings.kind, output),
            fitters.reports(),
            {part: texts.tokens(part) for part in texts.parts},
            {**{part: len(prompts) for part, prompts in texts.parts.items()}, "skipped": texts.skipped},
        )
        if settings.kind == "tuned":
            save_tuned(folder, maps, settings.model.source, facts.source.revision)
        else:
            save_linear(folder, maps)
        _write_provenance(folder, settings, facts, corpus.name, summary, report)
    return report


def fit_with_progress(settings: FitSettings, corpus: Corpus, output: Path, actors: Actors, quiet: bool) -> FitReport:
    """``fit_corpus`` with its progress on standard error, stopped by Ctrl-C and SIGTERM."""
    with ONE_AT_A_TIME, Stopping() as stopping, closing(choose(quiet=quiet)) as progress:
        return fit_corpus(settings, corpus, output, actors, progress, stopping)


def _texts(settings: FitSettings, corpus: Corpus, facts: ModelFacts, told: Callable[[int, int], None]) -> Any:
    from raylens.workers.fitting.texts import take_texts
    from raylens.workers.tokenize import Tokenizer, longest_input

    tokenizer = load_tokenizer(settings.model, facts.source)
    limit = longest_input(load_config(settings.model, facts.source).get_text_config(), tokenizer)
    asked = InputSettings(max_tokens=settings.batch_tokens, on_long="truncate")
    tokenize = Tokenizer(tokenizer, asked, "all", limit, facts.vocabulary_size)
    return take_texts(corpus.prompts(), tokenize, settings.tokens, settings.seed, corpus.name, told)


def _write_provenance(
    folder: Path, settings: FitSettings, facts: ModelFacts, corpus: str, summary: CorpusSummary, report: FitReport
) -> None:
    """What the lens was made from, with which settings and packages, and what it came to."""
    found = {
        "format": _FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "label": facts.source.label,
            "weights": facts.weights,
            "tokenizer": facts.tokenizer_hash,
            "layers": facts.n_layers,
            "width": facts.width,
        },
        "corpus": {"name": corpus, "prompts": summary.count, "fingerprint": summary.fingerprint},
        "settings": msgspec.to_builtins(settings),
        "tokens": report.tokens,
        "prompts": report.prompts,
        "report": msgspec.to_builtins(report.layers),
        "versions": {"raylens": __version__, **{package: importlib.metadata.version(package) for package in _PACKAGES}},
    }
    write_file(folder / "provenance.json", orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
