"""``raylens.run`` and ``raylens.fit_lens``: what is done to a corpus, from Python."""

import errno
import glob
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from raylens.scheduler.corpus import Corpus, CorpusSettings, Format
from raylens.scheduler.fit import Actors, fit_with_progress
from raylens.scheduler.process import ONE_AT_A_TIME
from raylens.scheduler.progress import choose
from raylens.scheduler.run import run_corpus
from raylens.scheduler.settings import RunSettings
from raylens.scheduler.stopping import Stopping
from raylens.storage.arguments import arguments
from raylens.storage.errors import InputError
from raylens.storage.labels import fit, text_label
from raylens.storage.layers import as_text
from raylens.storage.paths import given_path
from raylens.storage.positions import position_text
from raylens.storage.run import Run
from raylens.storage.store import Store
from raylens.storage.taps import parse_taps
from raylens.workers.fitting.report import FitReport
from raylens.workers.fitting.settings import BATCH_TOKENS, TOKENS, FitSettings, Kind
from raylens.workers.interventions.edits import read_edits
from raylens.workers.metrics import parse_stats
from raylens.workers.settings import (
    DType,
    InputSettings,
    LensSettings,
    LogprobType,
    ModelSettings,
    OnLong,
    WorkerSettings,
    generation_settings,
    model_source,
)
from raylens.workers.tracked import track_names


@arguments()
def run(
    corpus: str | Path | Iterable[str | Mapping[str, Any]],
    *,
    model: str | Path,
    store: str | Path = "raylens-store",
    name: str | None = None,
    revision: str | None = None,
    dtype: DType = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    top_k: int = 10,
    layers: str | int | Collection[int] = "all",
    taps: str | Sequence[str] | None = None,
    heads: str | int | Collection[int] | None = None,
    positions: str | int = "last",
    logprobs: LogprobType = "float16",
    stats: str | Sequence[str] | None = None,
    track: str | int | Sequence[str | int] = (),
    lens: str = "logit",
    intervene: str | Path | Mapping[str, Any] | None = None,
    generate: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    sample_top_k: int | None = None,
    seed: int = 0,
    samples: int = 1,
    format: Format = "auto",  # noqa: A002  the name of the option
    column: str | None = None,
    id_column: str | None = None,
    limit: int | None = None,
    chat_template: str | None = None,
    max_tokens: int | None = None,
    on_long: OnLong = "error",
    batch_tokens: int | None = None,
    actors: int | None = None,
    gpus_per_actor: float = 1.0,
    ray: str = "auto",
    redis: str = "embedded",
    writer: Literal["own", "external"] = "own",
    writer_helpers: int | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> Run:
    """Lens a corpus into a store and return the run, open for reading.

    Repeat the same call to resume a run that was stopped; what is stored is not computed again. Calls from several threads
    take turns. Arguments are those of ``raylens run --help``; the ones not listed below are exactly as there. Numbers and lists
    may be those of numpy or torch.

    Args:
        corpus: a path or glob of files, or an iterable of texts, or of dictionaries with the keys of a JSON line (``text``,
            ``messages`` or ``token_ids``, an optional ``id``, and metadata).
        model: a folder, GGUF file or hub id, or ``demo`` for the bundled model.
        store: the folder that holds the runs; created if missing.
        name: of the run; by default made from the model and the corpus.
        top_k: tokens to keep at each place (a position, tap and layer).
        layers: ``all``, a list such as ``0,5-10``, a layer such as -1, a slice such as ``::4``, or a list or set of numbers.
        taps: names, in a sequence or separated by commas; by default ``attn_out``, ``resid_mid``, ``mlp_out`` and
            ``resid_post``.
        heads: layers whose attention heads are lensed one by one too, such as ``5,8`` or ``all``.
        positions: ``last``, ``all``, ``last:N``, a position, or ``A:B`` (B not included).
        logprobs: the precision in which logprobs are stored.
        stats: statistics to store at each place: any of ``kl``, ``next_logprob``, ``next_rank``, ``best_logprob`` and
            ``best_rank``, or ``all`` of these, or ``none``; and any of ``attribution``, ``next_attribution`` and
            ``best_attribution`` (docs/ATTRIBUTION.md). Unless ``none``, ``resid_post`` has ``all`` if all its layers are
            lensed.
        track: tokens whose rank and logprob to store at each place, by text or id, or ``field:NAME`` for the token that
            each prompt's field NAME holds.
        lens: ``logit``, ``tuned:FOLDER``, ``jacobian:FILE`` or ``linear:FILE``.
        intervene: a YAML or JSON file of edits, or a dictionary of the same form (docs/INTERVENTIONS.md).
        generate: the most tokens to generate after each prompt; the steps are then lensed, in place of ``positions``.
        temperature, top_p, sample_top_k, seed, samples: how tokens are sampled; temperature 0 takes the most probable one.
        chat_template: Jinja source (not a file) for prompts with messages, in place of the model's own template.
        max_tokens: the longest prompt allowed, in tokens; by default the model's limit.
        on_long: what to do with a longer prompt: ``truncate``, ``skip`` or ``error`` (count it as failed).
        batch_tokens: tokens in one batch, generated ones included; by default it depends on the device.
        actors: how many; None is as many as the GPUs allow, or without GPUs one per node, more on a much larger one.
        fresh: start over, and keep an earlier run of this name as ``NAME.old-1``.
        quiet: show no progress.

    Returns:
        The run. Prompts that failed raise nothing; ``Run.failures`` has them.

    Raises:
        UsageError: an argument cannot be used, or the run was made with other settings.
        InputError, ModelError: the corpus or the model cannot be read.
        BrokerError, ClusterError: Redis or Ray cannot be reached or used.
        StoreError: the store is damaged, locked or cannot be written.
        KeyboardInterrupt: stopped by Ctrl-C; what is stored stays.
    """
    prompts = _corpus(corpus, format, column, id_column, limit)
    read_out = LensSettings(
        top_k,
        as_text(layers),
        parse_taps(taps) if taps is not None else None,
        position_text(positions),
        logprobs,
        parse_stats(stats) if stats is not None else None,
        track_names(track),
        lens,
        heads=as_text(heads, "--heads"),
    )
    worker = WorkerSettings(
        ModelSettings(model_source(model), revision, dtype, device_map, trust_remote_code),
        read_out,
        InputSettings(chat_template, max_tokens, on_long, batch_tokens),
        read_edits(intervene),
        generation_settings(generate, temperature, top_p, sample_top_k, seed, samples),
    )
    file = str(intervene) if isinstance(intervene, str | Path) else None
    folder = given_path(store, "store")
    settings = RunSettings(worker, folder, name, actors, gpus_per_actor, ray, redis, writer, writer_helpers, fresh, file)
    with ONE_AT_A_TIME, Stopping() as stopping, closing(choose(quiet=quiet)) as progress:
        outcome = run_corpus(settings, prompts, progress, stopping)
    if not outcome.complete:
        raise KeyboardInterrupt(f"run {outcome.run} stopped; the same call resumes it")
    return Store(store)[outcome.run]


@arguments()
def fit_lens(
    corpus: str | Path | Iterable[str | Mapping[str, Any]],
    *,
    model: str | Path,
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
    prompts = _corpus(corpus, format, column, id_column, limit)
    source = ModelSettings(model_source(model), revision, dtype, device_map, trust_remote_code)
    settings = FitSettings(source, kind, tokens, steps, learning_rate, batch_tokens, seed)
    return fit_with_progress(settings, prompts, given_path(output, "output"), Actors(actors, gpus_per_actor, ray), quiet)


def _corpus(
    given: str | Path | Iterable[str | Mapping[str, Any]],
    format: Format,  # noqa: A002  the name of the option
    column: str | None,
    id_column: str | None,
    limit: int | None,
) -> Corpus:
    """Of files, whose format may be told, or of rows.

    Raises:
        InputError: a text that names no file.
    """
    if isinstance(given, str | Path):
        if isinstance(given, str):
            _check_path(given)
        return Corpus(CorpusSettings((str(given),), (), format, column, id_column, limit))
    return Corpus.from_rows(given, column=column, id_column=id_column, limit=limit)


def _check_path(given: str) -> None:
    """Refuse what may be a prompt, in the place of a path or a list.

    Raises:
        InputError: it names no file.
    """
    if given == "-" or given.startswith("~") or _is_path(given):
        return
    if not glob.has_magic(given) or not glob.glob(given, recursive=True):  # noqa: PTH207  as of the corpus
        remedy = "check the path; a text itself is given as [text], or to raylens.lens"
        raise InputError(fit(text_label(given), 80), "no such file", remedy)


def _is_path(given: str) -> bool:
    """Whether there is such a file, which may be one that cannot be read."""
    try:
        Path(given).stat()
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True
