"""Two runs of the same prompts side by side: other models, checkpoints or settings (docs/QUERIES.md)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylens.storage.database import Database
from raylens.storage.errors import UsageError
from raylens.storage.result import Result
from raylens.storage.run import Run
from raylens.storage.selection import Lensed, lensed
from raylens.storage.vocabulary import Vocabulary

_SQL = Path(__file__).with_name("comparison.sql")
_SHARED = """
    SELECT
        count(*) AS ids, count(*) FILTER (shared > 0) AS prompts,
        count(*) FILTER (list_min(list_intersect(positions, other_positions)) < shared) AS lensed
    FROM matched($one, $other, $generated)
"""


def compare(one: Run, other: Run) -> Result:
    """A row for each tap and layer of ``one``, over the places that both runs have: same id, same tokens so far, same position.

    Reading the result raises UsageError where nothing can be compared, with the reason.
    """

    def prepare(database: Database) -> tuple[str, Mapping[str, Any]]:
        return _SQL.read_text(), _parameters(one, other, database)

    return Result([one] if _same(one, other) else [one, other], prepare, "a comparison")


def _same(one: Run, other: Run) -> bool:
    return one.folder.root == other.folder.root


def _parameters(one: Run, other: Run, database: Database) -> dict[str, Any]:
    generated = all("generation" in run.manifest.identity for run in (one, other))
    names = {"one": one.name, "other": other.name, "generated": generated}
    both = f"runs {one.name!r} and {other.name!r}"
    if not _alike(one.vocabulary, other.vocabulary):
        raise UsageError(f"{both} have different vocabularies; runs of models with one tokenizer can be compared")
    (shared,) = database.rows(_SHARED, names)
    if not shared["prompts"]:
        why = "the prompts of the same ids have other tokens" if shared["ids"] else "no prompt has a record in both"
        raise UsageError(f"{both} have nothing to compare: {why}")
    if not shared["lensed"]:
        raise UsageError(f"{both} have nothing to compare: no position of a prompt was lensed in both")
    has, others = lensed(one, database), lensed(other, database)
    pairs = _pairs(has, others)
    if not any({layer for layer, _ in pairs} & set(has.taps[tap]) for tap in set(has.taps) & set(others.taps)):
        raise UsageError(f"{both} have nothing to compare: no tap was lensed at the same layers in both")
    return {
        **names,
        "layers": [layer for layer, _ in pairs],
        "other_layers": [layer for _, layer in pairs],
        "k": min(has.k, others.k),
        "scale": (has.layers - 1) / max(1, others.layers - 1),
        "final": has.final and others.final,
    }


def _alike(one: Vocabulary, other: Vocabulary) -> bool:
    """Whether ids mean the same; one may be padded further than the other."""
    return all(mine is None or yours is None or mine == yours for mine, yours in zip(one, other, strict=False))


def _pairs(one: Lensed, other: Lensed) -> list[tuple[int, int]]:
    """Layers held against each other: the same, or between models of other depths the nearest at the same relative depth."""
    mine, yours = ({layer for layers in has.taps.values() for layer in layers} for has in (one, other))
    if one.layers == other.layers:
        return [(layer, layer) for layer in sorted(mine & yours)]
    scale = max(1, other.layers - 1) / max(1, one.layers - 1)
    return [(layer, min(sorted(yours), key=lambda other: abs(other - layer * scale))) for layer in sorted(mine)]
