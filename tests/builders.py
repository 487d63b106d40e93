"""Records, failures, frames, manifests and run folders for tests, all from seeds."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylens.storage.frame import split
from raylens.storage.generated import Generated
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.manifest import FORMAT, Manifest, create_or_resume, read_manifest
from raylens.storage.payload import encode_payload
from raylens.storage.record import Failure, Prompt, Record, TapLens
from raylens.storage.segments import SegmentBuilder, segment_path
from raylens.storage.vocabulary import Vocabulary, write_vocabulary

#: Number of logits of the pretended model.
VOCABULARY_SIZE = 500
TAPS = ("attn_out", "resid_post")


def make_tap(
    rng: np.random.Generator,
    layers: tuple[int, ...],
    positions: int,
    k: int,
    dtype: str,
    vocabulary_size: int,
    tracked: int = 0,
    stats: bool = False,
) -> TapLens:
    """A lens of random numbers that obeys every rule of the format."""
    shape = (len(layers), positions, k)
    logprobs: NDArray[Any] = -np.sort(rng.exponential(5, shape), axis=2)
    return TapLens(
        layers=layers,
        ids=rng.integers(0, vocabulary_size, shape, dtype=np.uint32),
        logprobs=logprobs.astype(dtype),
        logsumexp=rng.normal(20, 5, shape[:2]).astype(np.float32),
        entropy=rng.exponential(2, shape[:2]).astype(np.float32),
        stats=make_stats(rng, shape[:2], tracked, vocabulary_size) if stats else {},
    )


def make_stats(rng: np.random.Generator, place: tuple[int, int], tracked: int, vocabulary_size: int) -> dict[str, NDArray[Any]]:
    """One statistic of each type and shape; the last position has no next token."""
    logprob, rank = -rng.exponential(5, place).astype(np.float32), rng.integers(1, vocabulary_size, place, dtype=np.uint32)
    logprob[:, -1], rank[:, -1] = np.nan, 0
    found: dict[str, NDArray[Any]] = {"next_logprob": logprob, "next_rank": rank}
    if tracked:
        found["tracked_rank"] = rng.integers(1, vocabulary_size, (*place, tracked), dtype=np.uint32)
    return found


def make_record(
    index: int = 0,
    *,
    id: str | None = None,  # noqa: A002  the field's name
    seed: int | None = None,
    tokens: int = 4,
    positions: list[int] | None = None,
    layers: tuple[int, ...] = (0, 3),
    taps: tuple[str, ...] = TAPS,
    k: int = 3,
    dtype: str = "float16",
    text: str = "four words of text",
    metadata: dict[str, Any] | None = None,
    truncated_from: int | None = None,
    vocabulary_size: int = VOCABULARY_SIZE,
    tracked: int = 0,
    stats: bool = False,
    generated: Generated | None = None,
) -> Record:
    """A record; the same arguments make the same record, and the seed is the index unless given."""
    rng = np.random.default_rng(index if seed is None else seed)
    chosen = list(range(tokens)) if positions is None else positions
    if generated is not None:
        chosen, text = list(range(generated.start - 1, tokens - 1)), text + generated.text
    return Record(
        id=f"prompt-{index}" if id is None else id,
        index=index,
        text=text,
        token_ids=rng.integers(0, vocabulary_size, tokens).tolist(),
        tokens=[f" t{number}" for number in range(tokens)],
        positions=chosen,
        layers=list(layers),
        taps={
            tap: make_tap(
                rng, (0,) if tap == "resid_pre" else layers, len(chosen), k, dtype, vocabulary_size, tracked, stats=stats
            )
            for tap in taps
        },
        metadata={} if metadata is None else metadata,
        truncated_from=truncated_from,
        tracked=rng.integers(0, vocabulary_size, tracked).tolist(),
        generated=generated,
    )


def make_generated(start: int = 2, count: int = 2, **changes: Any) -> Generated:
    """The last ``count`` tokens of a record, as generated."""
    fields: dict[str, Any] = {
        "start": start,
        "finish": "length",
        "text": " and on",
        "logprobs": [-0.25 * (step + 1) for step in range(count)],
        "sampling_logprobs": [-0.125 * step for step in range(count)],
    }
    return Generated(**{**fields, **changes})


def make_large_record(index: int = 0, seed: int | None = None) -> Record:
    """A record whose payload takes three frames."""
    return make_record(index, seed=seed, tokens=3000, layers=tuple(range(6)), taps=TAPS, k=24)


def make_failure(index: int = 0, **changes: Any) -> Failure:
    """A failure."""
    return Failure(
        **{"id": f"prompt-{index}", "index": index, "kind": "model", "message": "NaN", "metadata": {"a": 1}, **changes}
    )


def make_prompt(index: int) -> Prompt:
    """The prompt that ``make_record(index)`` is the record of."""
    return Prompt(index, f"prompt-{index}", text="four words of text")


def make_frames(outcome: Record | Failure, run: str, attempt: bytes | None = None) -> list[bytes]:
    """The frames of one attempt at an outcome."""
    return split(encode_payload(outcome), run, outcome.index, secrets.token_bytes(8) if attempt is None else attempt)


def make_manifest(prompts: int = 4, **changes: Any) -> Manifest:
    """A manifest of a run with a stream of its own."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "name": "demo",
        "uid": secrets.token_hex(8),
        "created": "2026-01-02T03:04:05+00:00",
        "identity": {"model": {"weights": "abc", "dtype": "auto"}, "lens": {"top_k": 3, "taps": list(TAPS)}},
        "prompts": prompts,
        "vocabulary_size": VOCABULARY_SIZE,
        "sources": {"model": "demo", "label": "made-up", "revision": "", "corpus": "made-up.jsonl"},
        "versions": {"raylens": "0"},
    }
    return Manifest(**{**fields, **changes})


def make_vocabulary() -> Vocabulary:
    """As many tokens as the pretended model has logits, the last without a token."""
    return [*(f" t{number}".encode() for number in range(VOCABULARY_SIZE - 1)), None]


def make_run(store: Path, prompts: int = 4, **changes: Any) -> tuple[RunFolder, Manifest]:
    """A run's folder with its manifest and vocabulary, and nothing committed."""
    wanted = make_manifest(prompts, **changes)
    folder = RunFolder(runs_folder(store) / wanted.name)
    create_or_resume(folder, wanted)
    write_vocabulary(folder.vocabulary, make_vocabulary())
    return folder, wanted


def same(one: Record | Failure, other: Record | Failure) -> bool:
    """Whether two outcomes are equal to the last bit."""
    if isinstance(one, Failure) or isinstance(other, Failure):
        return one == other
    return _plain(one) == _plain(other)


def _plain(record: Record) -> tuple[Any, ...]:
    fields = (record.id, record.index, record.text, record.token_ids, record.tokens, record.positions, record.layers)
    taps = [
        (name, tap.layers, list(tap.stats), [(array.dtype.str, array.shape, array.tobytes()) for array in _arrays(tap)])
        for name, tap in record.taps.items()
    ]
    return (*fields, taps, record.metadata, record.truncated_from, record.tracked, record.generated)


def _arrays(tap: TapLens) -> tuple[NDArray[Any], ...]:
    return tap.ids, tap.logprobs, tap.logsumexp, tap.entropy, *tap.stats.values()


def commit_outcomes(folder: RunFolder, *outcomes: Record | Failure, writer: str = "0a1b2c3d", enter: bool = True) -> Path:
    """A segment of the outcomes, entered in the ledger as one commit unless told otherwise; its path."""
    ledger = Ledger(folder)
    ledger.refresh()
    builder = SegmentBuilder(read_manifest(folder).uid)
    for outcome in outcomes:
        builder.add(outcome)
    commit = builder.write(folder, ledger.next, writer)
    if enter:
        ledger.append(commit)
    return segment_path(folder, commit)


def fence(folder: RunFolder, writer: str = "0a1b2c3d") -> None:
    """The empty commit of a writer that takes over."""
    ledger = Ledger(folder)
    ledger.refresh()
    ledger.append(Commit.empty(ledger.next, writer))


def commit_all(folder: RunFolder, commits: list[list[int]], outcome_of: Callable[[int], Record | Failure]) -> None:
    """A commit for each list of prompts' indexes; an empty one is a fence."""
    for indexes in commits:
        if indexes:
            commit_outcomes(folder, *map(outcome_of, indexes))
        else:
            fence(folder)
