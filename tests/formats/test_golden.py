"""Each golden store reads as it did when it was made, for ever. How one is made: make_golden.py."""

import shutil
from pathlib import Path

import orjson
import pytest

from raylens.storage.compaction import compact
from raylens.storage.repair import repair
from raylens.storage.store import Store
from tests.formats.contents import contents

FOLDER = Path(__file__).parent
RUNS = [(path.name, run) for path in sorted(FOLDER.glob("store-*")) if path.is_dir() for run in Store(path).names()]


def test_there_are_stores() -> None:
    """The first format is here, with runs of every sort."""
    assert {run for store, run in RUNS if store == "store-1"} == {"plain", "full", "compacted", "untabled"}


@pytest.mark.parametrize(("store", "name"), RUNS)
def test_it_reads_as_ever(store: str, name: str) -> None:
    """Records, failures, queries, certificate, vocabulary and what verify says are those of the day it was made."""
    expected = orjson.loads((FOLDER / f"{store}.json").read_bytes())[name]
    found = contents(Store(FOLDER / store)[name])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == value, key


@pytest.mark.parametrize(("store", "name"), RUNS)
def test_it_is_mended_and_compacted(store: str, name: str, tmp_path: Path) -> None:
    """What this version writes into an old run leaves its contents as they were, tables made from records too."""
    shutil.copytree(FOLDER / store, tmp_path / store)
    expected = orjson.loads((FOLDER / f"{store}.json").read_bytes())[name]
    run = Store(tmp_path / store)[name]
    assert bool(repair(run.folder)) == bool(expected["damage"])
    compact(run.folder)
    found = contents(Store(tmp_path / store)[name])
    assert found.pop("damage") == []
    queries = found.pop("queries")
    assert queries == expected.pop("queries", queries)
    assert found == {key: value for key, value in expected.items() if key != "damage"}
