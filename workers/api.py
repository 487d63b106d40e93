"""``raylens.lens``: one text, in this process, without Ray, Redis or a store."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from raylens.storage.arguments import arguments
from raylens.storage.errors import RaylensError, UsageError
from raylens.storage.layers import as_text
from raylens.storage.positions import position_text
from raylens.storage.python_values import plain
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.taps import parse_taps
from raylens.workers.interventions.edits import read_edits
from raylens.workers.lenses.source import lens_state, parse_lens
from raylens.workers.metrics import parse_stats
from raylens.workers.model import load_model
from raylens.workers.preflight import inspect_model
from raylens.workers.settings import (
    DType,
    InputSettings,
    LensSettings,
    ModelSettings,
    WorkerSettings,
    check,
    generation_settings,
    model_source,
)
from raylens.workers.source import state
from raylens.workers.tracked import track_names
from raylens.workers.worker import Worker

#: A model has one set of hooks: calls from several threads take turns.
_ONE_AT_A_TIME = Lock()


@dataclass(slots=True)
class _Kept:
    """What the last call used: a model and a lens as their files were, and a worker; there may be memory for no other model."""

    files: tuple[Any, ...] | None = None
    lens: tuple[tuple[int, int], ...] = ()
    model: tuple[Any, Any] | None = None
    settings: WorkerSettings | None = None
    worker: Worker | None = None


_kept = _Kept()


def loaded(settings: WorkerSettings) -> Worker:
    """A worker in this process, whose model stays loaded until another one is asked for or its files change; of a lens too.

    Raises:
        RaylensError: the model cannot be used, or the settings are wrong.
    """
    check(settings)
    files, lens = (settings.model, *state(settings.model)), lens_state(parse_lens(settings.lens.lens))
    if _kept.worker is not None and (_kept.settings, _kept.files, _kept.lens) == (settings, files, lens):
        return _kept.worker
    inspect_model(settings)
    _kept.worker = None
    if _kept.model is None or _kept.files != files:
        _kept.model = None
        _kept.model, _kept.files = load_model(settings.model), files
    _kept.worker, _kept.settings, _kept.lens = Worker(settings, _kept.model), settings, lens
    return _kept.worker


def check_text(text: object) -> None:
    """Refuse what is not text, before a model loads.

    Raises:
        UsageError: it is not a str, or holds half a character, as an argument in another encoding does.
    """
    if not isinstance(text, str):
        remedy = "decode it to a str" if isinstance(text, bytes | bytearray) else "give a str, or use raylens.run for many"
        raise UsageError(f"the text is a {type(text).__name__}; {remedy}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError("the text holds bytes that are not UTF-8, or half of a surrogate pair; write whole characters")


def read(worker: Worker, text: str) -> Record:
    """The record of one text.

    Raises:
        RaylensError: the text cannot be lensed.
    """
    (outcome,) = worker.run([Prompt(0, "0", text)])
    if isinstance(outcome, Failure):
        long = outcome.kind == "too_long"  # whose remedy is of runs
        why = f"{outcome.message.partition(';')[0]}; shorten it" if long else outcome.message
        raise RaylensError(f"cannot lens this text ({outcome.kind}): {why}")
    return replace(outcome, vocabulary=worker.vocabulary)


@arguments()
def lens(
    text: str,
    *,
    model: str | Path = "demo",
    revision: str | None = None,
    dtype: DType = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    top_k: int = 10,
    layers: str | int | Collection[int] = "all",
    taps: str | Sequence[str] | None = None,
    heads: str | int | Collection[int] | None = None,
    positions: str | int | None = None,
    stats: str | Sequence[str] | None = None,
    track: str | int | Sequence[str | int] = (),
    lens: str = "logit",
    intervene: str | Path | Mapping[str, Any] | None = None,
    generate: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    sample_top_k: int | None = None,
    seed: int = 0,
) -> Record:
    """Lens one text in this process, without Ray, Redis or a store.

    The model stays loaded for the next call; it is freed when another one is asked for or its files change. Calls from
    several threads take turns. A process that has used it must not be forked: its child has no threads to compute with, and
    hangs here. Start processes by ``spawn``, as by ``multiprocessing.get_context("spawn")``. Logprobs are float32. Arguments
    not listed below are as for ``raylens.run``.

    Args:
        text: the prompt.
        model: a folder, GGUF file or hub id, or ``demo`` for the bundled model.
        positions: all by default; with ``generate``, the generated steps.
        stats: statistics to compute, as for ``raylens.run``; by default none.

    Returns:
        The record. ``record.taps["resid_post"].ids`` is [layers, positions, top_k], best token first.

    Raises:
        UsageError: an argument cannot be used.
        ModelError: the model cannot be found, loaded or lensed.
        RaylensError: the text cannot be lensed, for example because it is too long.
    """
    settings = WorkerSettings(
        ModelSettings(model_source(model), revision, dtype, device_map, trust_remote_code),
        LensSettings(
            top_k,
            as_text(layers),
            parse_taps(taps) if taps is not None else None,
            position_text(positions) if positions is not None else "all" if generate is None else "last",
            "float32",
            parse_stats(plain(stats, "--stats") or ()),
            track_names(track),
            lens,
            heads=as_text(heads, "--heads"),
        ),
        InputSettings(),
        read_edits(intervene),
        generation_settings(generate, temperature, top_p, sample_top_k, seed),
    )
    check_text(text)
    with _ONE_AT_A_TIME:
        return read(loaded(settings), text)
