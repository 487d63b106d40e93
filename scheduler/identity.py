"""The identity of a run: its name, and what its results depend on, by which the same command goes on with it."""

import importlib.metadata
import secrets
from datetime import UTC, datetime
from typing import Any

import msgspec

from raylens import __version__
from raylens.scheduler.corpus import Corpus, CorpusSummary
from raylens.scheduler.settings import RunSettings
from raylens.storage.manifest import FORMAT, Manifest
from raylens.workers.interventions.edits import identity as edits_identity
from raylens.workers.lenses.source import parse_lens
from raylens.workers.preflight import ModelFacts
from raylens.workers.settings import LensSettings

_PACKAGES = ("torch", "transformers", "accelerate", "ray", "redis", "msgpack", "numpy", "tokenizers")
_LATER_OPTIONS = ("stats", "track", "heads", "residual_stats")


def manifest_of(settings: RunSettings, corpus: Corpus, summary: CorpusSummary, facts: ModelFacts) -> Manifest:
    """What a new run of these would have; one that goes on must have the same identity."""
    name = settings.name or f"{_slug(facts.source.label)}-{summary.fingerprint[:8]}"
    worker = settings.worker
    identity: dict[str, dict[str, Any]] = {
        "model": {
            "weights": facts.weights,
            "dtype": worker.model.dtype,
            "tokenizer": facts.tokenizer_hash,
        },
        "lens": {"kind": parse_lens(worker.lens.lens).kind, "component_norm": "own", **_asked(worker.lens)},
        "input": {
            "max_tokens": worker.input.max_tokens,
            "on_long": worker.input.on_long,
            "chat_template": facts.chat_template_hash if summary.has_messages else None,
        },
        "corpus": {"prompts": summary.count, "fingerprint": summary.fingerprint},
    }
    sources = {
        "model": worker.model.source,
        "label": facts.source.label,
        "revision": facts.source.revision,
        "corpus": corpus.name,
    }
    if worker.generation is not None:
        identity["generation"] = msgspec.to_builtins(worker.generation)
    if facts.lens_digest is not None:
        identity["lens"]["file"] = facts.lens_digest
        sources["lens"] = worker.lens.lens
    if worker.edits:
        identity["intervention"] = edits_identity(worker.edits)
        if settings.intervention is not None:
            sources["intervention"] = settings.intervention
    return Manifest(
        format=FORMAT,
        name=name,
        uid=secrets.token_hex(8),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=identity,
        prompts=summary.count * (worker.generation.samples if worker.generation else 1),
        vocabulary_size=facts.vocabulary_size,
        sources=sources,
        versions={"raylens": __version__, **{package: importlib.metadata.version(package) for package in _PACKAGES}},
    )


def _asked(lens: LensSettings) -> dict[str, Any]:
    """The settings but for later options that are not used, so that runs from before them resume; and but for the lens's path,
    for its kind and content are what counts."""
    settings: dict[str, Any] = msgspec.to_builtins(lens)
    del settings["lens"], settings["lens_digest"]
    return {name: value for name, value in settings.items() if value or name not in _LATER_OPTIONS}


def _slug(label: str) -> str:
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in label.lower())
    return kept.strip(".-")[:60] or "run"
