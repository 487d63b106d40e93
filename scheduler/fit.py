"""Fitting a lens, from corpus to files: the one module that knows every stage of it."""

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson

from raylens import __version__
from raylens.scheduler.chat import check_chat
from raylens.scheduler.corpus import Corpus, CorpusSettings, CorpusSummary, Format
from raylens.scheduler.new_folder import new_folder
from raylens.scheduler.process import ONE_AT_A_TIME
from raylens.scheduler.progress import Progress, choose
from raylens.scheduler.settings import check_actors
from raylens.scheduler.stopping import Stopping, heeding
from raylens.storage.durable import write_file
from raylens.storage.errors import ModelError
from raylens.storage.paths import given_path
from raylens.workers.fitting.report import FitReport
from raylens.workers.fitting.settings import BATCH_TOKENS, TOKENS, FitSettings, Kind, check
from raylens.workers.preflight import ModelFacts, inspect_model, load_config, load_tokenizer, pinned
from raylens.workers.settings import DType, InputSettings, ModelSettings, WorkerSettings
from raylens.workers.source import fetch_weights

_PACKAGES = ("torch", "transformers", "ray", "numpy", "tokenizers")
#: Of provenance.json.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Actors:
    """Where it is fitted: as the options of ``raylens run``."""

    count: int | None = None
    gpus_each: float = 1.0
    ray: str = "auto"


def fit_corpus(
    settings: FitSettings, corpus: Corpus, output: Path, actors: Actors, progress: Progress, stopping: Callable[[], bool]
) -> FitReport:
    """Fit a lens to a model on a corpus and write it into a new folder.

    Raises:
        RaylensError: the corpus, the model, the folder or the cluster cannot be used; nothing is left of the folder then.
        KeyboardInterrupt: the user stopped it; likewise.
    """
    check(settings)
    check_actors(actors.count, actors.gpus_each)
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
        from raylens.scheduler.cluster import cluster
        from raylens.scheduler.fitters import Fitters
        from raylens.scheduler.nodes import ANSWER_SECONDS, Nodes
        from raylens.scheduler.sizing import share

        progress.stage("starting Ray")
        ours = stack.enter_context(cluster(actors.ray, progress.stage, stopping))
        Nodes().check(ANSWER_SECONDS)
        if ours.here:  # the actors of other machines fetch the model themselves
            fetch_weights(facts.source, heeding(stopping, progress.fetched))
        fitters = Fitters(settings, texts.parts, fitted, share(actors.count, actors.gpus_each), stopping)
        stack.callback(fitters.stop)
        progress.stage(f"fitting {len(fitted)} maps on {texts.tokens('fit'):,} tokens")
        fitters.run(progress.steps)
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


def fit_lens(
    corpus: str | Path | Iterable[str | Mapping[str, Any]],
    *,
    model: str,
    output: str | Path,
    kind: Kind = "tuned",
    revision: str | None = None,
    dtype: DType = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    tokens: int = TOKENS,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    format: Format = "auto",  # noqa: A002  the name of the option
    column: str | None = None,
    id_column: str | None = None,
    limit: int | None = None,
    actors: int | None = None,
    gpus_per_actor: float = 1.0,
    ray: str = "auto",
    quiet: bool = False,
) -> FitReport:
    """Fit a lens to a model on a corpus and write it into a new folder (docs/LENSES.md).

    Arguments are those of ``raylens fit-lens --help``; the ones not listed below are exactly as there.

    Args:
        corpus: a path or glob of files, or an iterable of texts, or of dictionaries with the keys of a JSON line.
        model: a folder, GGUF file or hub id, or ``demo`` for the bundled model.
        output: the folder to create; it must not exist yet.
        kind: ``tuned`` (least squares, then training on the KL) or ``linear`` (least squares only).
        tokens: how many to fit on; an eighth as many more are for validation, and an eighth are held out for the report.
        steps: training steps, of one batch each; by default 64, and 0 is least squares only.
        learning_rate: of Adam at the first step, falling linearly to 0; by default 0.05 / the model's width.
        batch_tokens: tokens in one batch; longer prompts are cut to this.
        seed: for splitting the prompts and for the order of the batches.
        quiet: show no progress.

    Returns:
        A report. ``lens`` is what to give as ``lens`` to ``raylens.run`` and ``raylens.lens``. ``layers`` has, layer by
        layer, the mean KL(final || lens) in nats on held-out prompts, under the logit lens and under the fitted one.

    Raises:
        RaylensError: the lens cannot be fitted; nothing is written.
        KeyboardInterrupt: stopped by Ctrl-C; nothing is written.
    """
    if isinstance(corpus, str | Path):
        prompts = Corpus(CorpusSettings(sources=(str(corpus),), format=format, column=column, id_column=id_column, limit=limit))
    else:
        prompts = Corpus.from_rows(corpus, column=column, id_column=id_column, limit=limit)
    source = ModelSettings(model, revision, dtype, device_map, trust_remote_code)
    settings = FitSettings(source, kind, tokens, steps, learning_rate, batch_tokens, seed)
    return fit_with_progress(settings, prompts, given_path(output, "output"), Actors(actors, gpus_per_actor, ray), quiet)


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
