"""Runs to measure the store with: real ones of the demo model, and large ones generated from their records."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import Manifest, create_or_resume
from raylens.storage.record import Prompt, Record, TapLens
from raylens.storage.run import Run
from raylens.storage.segments import SegmentBuilder
from raylens.storage.store import open_store
from raylens.storage.vocabulary import Vocabulary, write_vocabulary
from raylens.workers.settings import InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker

#: Of a full segment.
SEGMENT_BYTES = 8 << 20
#: Tokens of a generated prompt.
LENGTH = 100
WRITER = "0a1b2c3d"
TAPS = ("attn_out", "resid_mid", "mlp_out", "resid_post")


def real_records(texts: Iterable[str]) -> tuple[list[Record], Vocabulary]:
    """What SmolLM2-135M in float32 gives for texts: four taps, every layer and position, k = 10; and its vocabulary."""
    worker = Worker(
        WorkerSettings(ModelSettings("demo", dtype="float32"), LensSettings(10, taps=TAPS, positions="all"), InputSettings())
    )
    prompts = [Prompt(index, str(index), text=text) for index, text in enumerate(texts)]
    return [outcome for outcome in worker.run(prompts) if isinstance(outcome, Record)], worker.vocabulary


def paragraphs(tokens: int) -> list[str]:
    """Paragraphs of raylens's documents with about so many tokens, none of more than some hundred."""
    found, total = [], 0
    root = Path(__file__).parents[2]
    for path in sorted([root / "README.md", *root.glob("docs/**/*.md")]):
        for text in path.read_text().split("\n\n"):
            if total < tokens and 40 < len(text) < 600:
                found.append(text)
                total += len(text) // 4
    return found


def generated(pool: list[Record], positions: int, seed: int = 0) -> Iterator[Record]:
    """Records of LENGTH tokens whose places are those of real ones, shuffled, with other digits and some other tokens.

    A twentieth of the places among the k best have another token of the vocabulary, and each logprob and entropy is up to 5 %
    off, so that no two places are alike.
    """
    rng = np.random.default_rng(seed)
    taps = {name: _joined([record.taps[name] for record in pool]) for name in TAPS}
    tokens = np.concatenate([np.array(record.token_ids) for record in pool])
    texts = np.array([token for record in pool for token in record.tokens])
    for index in range(positions // LENGTH):
        chosen = rng.integers(0, len(tokens), LENGTH)
        yield dataclasses.replace(
            pool[0],
            id=f"prompt/{index}",
            index=index,
            text="".join(texts[chosen]),
            token_ids=tokens[chosen].tolist(),
            tokens=texts[chosen].tolist(),
            positions=list(range(LENGTH)),
            taps={name: _varied(tap, chosen, rng) for name, tap in taps.items()},
            metadata={"topic": f"topic {index % 7}"},
        )


def _joined(taps: list[TapLens]) -> TapLens:
    arrays = {name: np.concatenate([getattr(tap, name) for tap in taps], axis=1) for name in _ARRAYS}
    return dataclasses.replace(taps[0], **arrays)


_ARRAYS = ("ids", "logprobs", "logsumexp", "entropy")


def _varied(tap: TapLens, chosen: Any, rng: np.random.Generator) -> TapLens:
    ids, logprobs = tap.ids[:, chosen].copy(), tap.logprobs[:, chosen].astype(np.float32)
    other = rng.random(ids.shape) < 0.05
    other[-1, :, 0] = False
    ids[other] = rng.integers(0, 49_152, int(other.sum()))
    factor = rng.uniform(0.95, 1.05, logprobs.shape).astype(np.float32)
    return dataclasses.replace(
        tap,
        ids=ids,
        logprobs=-np.sort(-logprobs * factor, axis=2).astype(np.float16),
        logsumexp=tap.logsumexp[:, chosen] * factor[:, :, 0],
        entropy=tap.entropy[:, chosen] * factor[:, :, 0],
    )


def write_run(store: Path, name: str, prompts: int, records: Iterable[Record], vocabulary: Vocabulary) -> Run:
    """A run of the records, committed in segments of the size that the writer makes."""
    folder = RunFolder(runs_folder(store) / name)
    lens = {"taps": list(TAPS), "top_k": 10, "stats": [], "track": []}
    manifest = Manifest(
        1,
        name,
        "0123456789abcdef",
        "2026-01-01T00:00:00+00:00",
        {"lens": lens},
        prompts,
        len(vocabulary),
        {"model": "demo", "label": "smollm2-135m"},
        {},
    )
    create_or_resume(folder, manifest)
    write_vocabulary(folder.vocabulary, vocabulary)
    ledger, segment = Ledger(folder), SegmentBuilder(manifest.uid)
    for record in records:
        segment.add(record)
        if segment.size >= SEGMENT_BYTES:
            ledger.append(segment.write(folder, ledger.next, WRITER))
            segment = SegmentBuilder(manifest.uid)
    if len(segment):
        ledger.append(segment.write(folder, ledger.next, WRITER))
    return open_store(store)[name]


def size(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
