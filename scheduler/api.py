"""``raylens.run``: a corpus into a store, from Python."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from raylens.scheduler.corpus import Corpus, CorpusSettings, Format
from raylens.scheduler.process import ONE_AT_A_TIME
from raylens.scheduler.progress import choose
from raylens.scheduler.run import run_corpus
from raylens.scheduler.settings import RunSettings
from raylens.scheduler.stopping import Stopping
from raylens.storage.layers import as_text
from raylens.storage.paths import given_path
from raylens.storage.store import Run, Store
from raylens.storage.taps import parse_taps
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
)
from raylens.workers.tracked import track_names


def run(
    corpus: str | Path | Iterable[str | Mapping[str, Any]],
    *,
    model: str,
    store: str | Path = "raylens-store",
    name: str | None = None,
    revision: str | None = None,
    dtype: DType = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    top_k: int = 10,
    layers: str | int | Sequence[int] = "all",
    taps: str | Sequence[str] | None = None,
    heads: str | int | Sequence[int] | None = None,
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
    """Lens a corpus into a store and open the run; the same call again goes on where the last one ended. Calls from several
    threads take turns.

    Args:
        corpus: a path or glob of files, or an iterable of texts or of dictionaries with the keys of JSON lines.
        model: a folder, GGUF file, hub id, or ``demo``.
        store: folder of runs, made if absent.
        heads: layers whose attention heads are lensed one by one, such as ``5,8`` or ``all``.
        stats: names from ``kl``, ``next_logprob``, ``next_rank``, ``best_logprob`` and ``best_rank``, or ``all`` of these, or
            ``none``; and from ``attribution``, ``next_attribution`` and ``best_attribution`` (docs/ATTRIBUTION.md). But
            for ``none``, ``all`` is stored anyway of ``resid_post``, if all its layers are lensed.
        track: tokens, by text or id, or ``field:NAME`` for what each prompt's own field of that name holds.
        lens: ``logit``, ``tuned:FOLDER``, ``jacobian:FILE`` or ``linear:FILE``.
        intervene: a YAML or JSON file of edits, or a dictionary of its form (docs/INTERVENTIONS.md).
        generate: tokens to generate after each prompt; its steps are lensed then.
        temperature, top_p, sample_top_k, seed, samples: of the draws, as the options of ``raylens run``.
        chat_template: Jinja source.
        quiet: show no progress.
        name, revision, ...: as the options of ``raylens run``.

    Raises:
        RaylensError: the run cannot begin or go on. Failed prompts raise nothing; see ``Run.failures``.
        KeyboardInterrupt: stopped by Ctrl-C; what is stored stays.
    """
    if isinstance(corpus, str | Path):
        prompts = Corpus(CorpusSettings(sources=(str(corpus),), format=format, column=column, id_column=id_column, limit=limit))
    else:
        prompts = Corpus.from_rows(corpus, column=column, id_column=id_column, limit=limit)
    read_out = LensSettings(
        top_k,
        as_text(layers),
        parse_taps(taps) if taps is not None else None,
        str(positions) if isinstance(positions, int) else positions,
        logprobs,
        parse_stats(stats) if stats is not None else None,
        track_names(track),
        lens,
        heads=as_text(heads),
    )
    worker = WorkerSettings(
        ModelSettings(model, revision, dtype, device_map, trust_remote_code),
        read_out,
        InputSettings(chat_template, max_tokens, on_long, batch_tokens),
        read_edits(intervene),
        generation_settings(generate, temperature, top_p, sample_top_k, seed, samples),
    )
    file = str(intervene) if isinstance(intervene, str | Path) else None
    folder = given_path(store, "store")
    settings = RunSettings(worker, folder, name, actors, gpus_per_actor, ray, redis, writer, writer_helpers, fresh, file)
    with ONE_AT_A_TIME, Stopping() as stopping, closing(choose(as_json=False, quiet=quiet)) as progress:
        outcome = run_corpus(settings, prompts, progress, stopping)
    if not outcome.complete:
        raise KeyboardInterrupt(f"run {outcome.run} stopped; the same call resumes it")
    return Store(store)[outcome.run]
