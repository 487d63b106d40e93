"""Tables are what their segment's records give: verify names any that are not, repair makes them again, queries refuse them."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylens.storage.compaction import compact
from raylens.storage.database import Database
from raylens.storage.errors import OtherFormat, StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.record import TapLens
from raylens.storage.repair import repair
from raylens.storage.run import Run
from raylens.storage.store import Store
from raylens.storage.tables import ABOUT, KINDS, LATER, lens_table
from raylens.storage.verify import examine
from tests.builders import commit_outcomes, make_failure, make_record, make_run

COUNTS = "SELECT (SELECT count(*) FROM prompts) AS prompts, (SELECT sum(prompt * layer + len(ids)) FROM lens) AS total"

ALL = "SELECT * FROM lens JOIN prompt_rows USING (run, prompt) WHERE layer >= 1 AND prompt <> 7 ORDER BY ALL"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two segments, with statistics, failures and records of differing layers."""
    folder, _ = make_run(tmp_path_factory.mktemp("made"), prompts=6)
    stats: dict[str, Any] = {"stats": True, "tracked": 2}
    commit_outcomes(folder, make_record(0, **stats), make_failure(1), make_record(2, layers=(1,), **stats))
    commit_outcomes(folder, make_record(4, tokens=9), make_record(3, tokens=1))
    assert examine(folder).damage == []
    return folder


@pytest.fixture
def folder(made: RunFolder, tmp_path: Path) -> RunFolder:
    return copy_of(made, tmp_path)


def copy_of(folder: RunFolder, place: Path) -> RunFolder:
    copy = RunFolder(place / "runs" / "demo")
    shutil.copytree(folder.root, copy.root)
    return copy


def open_run(folder: RunFolder) -> Run:
    return Store(folder.root.parent.parent)["demo"]


def table(folder: RunFolder, n: int, kind: str) -> Path:
    return folder.tables / f"{n:09d}-0a1b2c3d.{kind}.parquet"


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.tables.iterdir()}


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **about: Any) -> None:
    """A valid Parquet file with other rows, columns or another description, in the place of a table."""
    found = change(pq.read_table(path))
    described = json.loads(pq.read_metadata(path).metadata[ABOUT.encode()]) | about
    with pq.ParquetWriter(path, found.schema, store_schema=False) as writer:
        writer.write_table(found)
        writer.add_key_value_metadata({ABOUT: json.dumps(described)})


def swap(one: Path, other: Path) -> None:
    away = one.with_suffix(".away")
    one.rename(away)
    other.rename(one)
    away.rename(other)


def change_value(found: pa.Table) -> pa.Table:
    at = found.schema.get_field_index("entropy")
    return found.set_column(at, "entropy", pa.array([*found["entropy"].to_pylist()[:-1], 0.125], pa.float32()))


#: What is done, the file that verify names, and what it says of it.
DAMAGES: dict[str, tuple[Callable[[RunFolder], Any], str, str]] = {
    "cut": (lambda one: os.truncate(table(one, 0, "lens"), 900), "tables/000000000-0a1b2c3d.lens", "damaged table"),
    "empty": (lambda one: os.truncate(table(one, 1, "prompts"), 0), "tables/000000001-0a1b2c3d.prompts", "damaged table"),
    "no Parquet": (
        lambda one: table(one, 1, "prompts").write_bytes(b"PAR1" * 9), "tables/000000001-0a1b2c3d.prompts", "damaged",
    ),
    "a folder": (
        lambda one: (table(one, 1, "lens").unlink(), table(one, 1, "lens").mkdir()), "tables/000000001-0a1b2c3d.lens", "damaged",
    ),
    "another Parquet file": (
        lambda one: pq.write_table(pa.table({"x": [1]}), table(one, 1, "lens")), "tables/000000001-0a1b2c3d.lens", "damaged",
    ),
    "segments swapped": (
        lambda one: swap(table(one, 0, "lens"), table(one, 1, "lens")),
        "tables/000000000-0a1b2c3d.lens", "commits 1 to 1, not its own",
    ),
    "kinds swapped": (
        lambda one: swap(table(one, 0, "lens"), table(one, 0, "prompts")),
        "tables/000000000-0a1b2c3d.lens", "prompts table of run",
    ),
    "of another run": (
        lambda one: rewrite(table(one, 0, "lens"), lambda found: found, run="f" * 16),
        "tables/000000000-0a1b2c3d.lens", "run ffffffffffffffff",
    ),
    "a row less": (
        lambda one: rewrite(table(one, 0, "lens"), lambda found: found[1:]), "tables/000000000-0a1b2c3d.lens", "rows, the record",
    ),
    "another value": (
        lambda one: rewrite(table(one, 0, "lens"), change_value), "tables/000000000-0a1b2c3d.lens", "not what the records give",
    ),
    "rows in another order": (
        lambda one: rewrite(table(one, 1, "prompts"), lambda found: found.take([1, 0])),
        "tables/000000001-0a1b2c3d.prompts", "not what the records give",
    ),
    "missing": (lambda one: table(one, 1, "lens").unlink(), "tables", "missing for 1 segments"),
    "all missing": (lambda one: shutil.rmtree(one.tables), "tables", "missing for 2 segments"),
}  # fmt: skip
#: What only reading all rows finds; a query reads the ends of the files first.
UNSEEN_BY_QUERIES = {"a row less", "another value", "rows in another order"}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_refused_and_mended(folder: RunFolder, name: str) -> None:
    """verify names the table, a query refuses it, and a repair makes the same bytes again from the records."""
    before, rows = contents(folder), open_run(folder).sql(COUNTS).rows()
    damage, file, text = DAMAGES[name]
    damage(folder)
    named = [(one.file, one.problem) for one in examine(folder).damage]
    assert any(found.startswith(file) and text in problem and "--repair" in problem for found, problem in named), named
    assert all(found.startswith("tables") for found, _ in named)
    if name not in UNSEEN_BY_QUERIES:
        with pytest.raises(StoreError, match=r"tables.*raylens verify STORE --repair makes"):
            open_run(folder).sql(COUNTS).rows()
    assert list(open_run(folder)), "records do not need their tables"
    assert repair(folder)
    assert examine(folder).damage == []
    assert contents(folder) == before
    assert open_run(folder).sql(COUNTS).rows() == rows
    assert repair(folder) == [], "nothing more to do"


def test_a_text_that_only_duckdb_takes_for_bytes_is_named(folder: RunFolder) -> None:
    """One bit of the type that a Parquet file states twice: Arrow goes by the other, and the rows hash alike."""
    path = table(folder, 0, "prompts")
    data = path.read_bytes()
    stated = b"\x08metadata%\x00L"
    assert data.count(stated) == 1
    path.write_bytes(data.replace(stated, b"\x08metadata$\x00L"))
    assert [(one.file, one.problem) for one in examine(folder).damage] == [
        (f"tables/{path.name}", "DuckDB reads other rows than the records give; --repair makes it again")
    ]
    repair(folder)
    assert path.read_bytes() == data


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_a_table(made: RunFolder, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A byte changed anywhere is found unless no row depends on it; a query gives one clear error or rows; repair mends it."""
    folder = copy_of(made, tmp_path_factory.mktemp("copy"))
    before, rows = contents(folder), open_run(made).sql(ALL).rows()
    path = folder.tables / data.draw(st.sampled_from(sorted(before)))
    changed = bytearray(before[path.name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    found = examine(folder)
    if found.untouchable:
        with pytest.raises(OtherFormat, match="use the raylens that wrote it"):
            open_run(folder).sql(COUNTS).rows()
        return
    if not found.damage:
        assert open_run(folder).sql(ALL).rows() == rows
        return
    with suppress(StoreError):
        open_run(folder).sql(COUNTS).rows()
    repair(folder)
    assert examine(folder).damage == []
    assert contents(folder) == before


def damage_page(path: Path) -> None:
    """Of the first page of a table its header, which nothing reads before the page itself is read."""
    data = bytearray(path.read_bytes())
    data[4] = 0xFE
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_page_is_no_wrong_statement(folder: RunFolder, kind: str) -> None:
    """Its reader in DuckDB has several words for that, without a kind of error."""
    whole = table(folder, 0, kind).read_bytes()
    for at in range(4, 24):
        for value in (0x00, 0x1D, 0x7F, 0xFE):
            table(folder, 0, kind).write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            with suppress(StoreError):
                open_run(folder).sql(ALL).rows()


def test_a_damaged_page_is_told_by_its_run(folder: RunFolder, tmp_path: Path) -> None:
    """Of the runs of a store those are named whose tables cannot be read; the others can be asked."""
    for name in ("a", "b", "c"):
        shutil.copytree(folder.root, tmp_path / "runs" / name)
    store = Store(tmp_path)
    damage_page(table(store["b"].folder, 1, "lens"))
    with pytest.raises(StoreError, match=r"raylens verify STORE.*; it is a table of b: query other runs one by one$"):
        store.sql(ALL).rows()
    assert store["c"].sql(ALL).rows()
    assert len(store.sql("SELECT * FROM prompts").rows()) == 4 * len(store["c"])  # of other tables, none of which is damaged


def test_a_table_that_only_duckdb_cannot_open_is_told_by_its_run(folder: RunFolder, tmp_path: Path) -> None:
    """Some bits of a table's end mean nothing to Arrow, which is asked first."""
    shutil.copytree(folder.root, tmp_path / "runs" / "b")
    path, told = table(RunFolder(tmp_path / "runs" / "b"), 0, "lens"), ""
    whole = path.read_bytes()
    places = iter(range(len(whole) - 500, len(whole)))
    while "cannot be read" not in told:
        at = next(places)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            Store(tmp_path).sql("SELECT 1").rows()
        except StoreError as error:
            told = str(error)
    assert told.startswith("tables of b cannot be read (")


def test_a_final_prediction_past_what_a_column_holds() -> None:
    """Among more than 65,535 tokens its place there is not known to the table; up to there it is."""
    ids = np.arange(70_000, dtype=np.uint32)
    finals = [65_534, 65_535, 0]  # at ranks 65,535 and 65,536 of the first layer, and the best
    last = np.stack([np.roll(ids, -final) for final in finals])
    taken = np.stack([np.broadcast_to(ids, last.shape), last])
    flat = np.zeros(taken.shape[:2], np.float32)
    tap = TapLens((0, 1), taken, np.zeros(taken.shape, np.float32), flat, flat)
    record = dataclasses.replace(make_record(0), positions=[0, 1, 2], layers=[0, 1], taps={"resid_post": tap})
    assert lens_table([record])["final_rank"].to_pylist() == [65_535, None, 1, 1, 1, 1]


def test_tables_go_with_their_segment(folder: RunFolder) -> None:
    """What a repair moves aside takes its tables along; those of the kept records are new."""
    segment = sorted(folder.records.iterdir())[0]
    before = {path.name for path in folder.tables.iterdir()}
    data = bytearray(segment.read_bytes())
    data[-5] ^= 1
    segment.write_bytes(data)
    repair(folder)
    assert {f"000000000-0a1b2c3d.{kind}.parquet" for kind in KINDS} <= {path.name for path in folder.damaged.iterdir()}
    assert examine(folder).damage == []
    now = {path.name for path in folder.tables.iterdir()}
    assert len(now) == 4
    assert len(now & before) == 2
    assert [name for name in examine(folder).leftovers if name.startswith("tables")] == []
    assert len(open_run(folder).sql("SELECT * FROM prompts").rows()) == 4


def test_tables_of_a_segment_that_is_gone_go_too(folder: RunFolder) -> None:
    """Nothing is left for a query that no record stands behind."""
    sorted(folder.records.iterdir())[1].unlink()
    repair(folder)
    assert len(list(folder.tables.iterdir())) == 2
    assert len(open_run(folder).sql("SELECT * FROM prompts").rows()) == 3


def test_merged_tables_are_checked_and_mended(folder: RunFolder) -> None:
    """The tables of a merged segment are made again with the commits that they stand for."""
    compact(folder)
    before = contents(folder)
    for name in before:
        (folder.tables / name).write_bytes(b"PAR1")
    assert len(examine(folder).damage) == 2
    repair(folder)
    assert contents(folder) == before


def test_other_files_beside_the_tables_are_leftovers(folder: RunFolder) -> None:
    """Tables that no commit leads to are listed, not read."""
    stray = folder.tables / "000000007-0a1b2c3d.lens.parquet"
    stray.write_bytes(b"x")
    found = examine(folder)
    assert (found.damage, found.leftovers) == ([], [f"tables/{stray.name}"])
    assert open_run(folder).sql("SELECT count(*) AS n FROM lens").rows()[0]["n"] > 0


def test_a_newer_table_is_left_alone(folder: RunFolder) -> None:
    """What a newer raylens wrote is named; neither a query reads it nor does a repair replace it."""
    rewrite(table(folder, 0, "lens"), lambda found: found, format=2)
    before = contents(folder)
    assert "format 2; this raylens reads format 1; use the raylens that wrote it" in examine(folder).damage[0].problem
    with pytest.raises(OtherFormat, match=r"0a1b2c3d\.lens\.parquet: table of format 2.*use the raylens that wrote it"):
        open_run(folder).sql(COUNTS).rows()
    with pytest.raises(StoreError, match="format 2"):
        repair(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("older", [0, 1])
def test_a_run_that_an_older_raylens_began(folder: RunFolder, older: int) -> None:
    """Tables that lack a column are read with those that have it, whichever is first; the column is null there."""
    rows = open_run(folder).sql(ALL).rows()
    assert set(rows[0]) >= LATER
    rewrite(table(folder, older, "lens"), lambda found: found.drop(sorted(LATER)))
    assert examine(folder).damage == []
    assert open_run(folder).sql(ALL).rows() == rows


def test_files_are_opened_for_their_rows_only(folder: RunFolder) -> None:
    """Not for their columns, each as often as a statement names a view: what they hold is known when the database is opened."""
    with Database([open_run(folder)]) as database:
        table(folder, 1, "lens").write_bytes(b"PAR1" * 9)
        with database.query("DESCRIBE topk") as reader:
            assert reader.read_all()["column_name"].to_pylist()[-2:] == ["token", "logprob"]
        with pytest.raises(StoreError, match="raylens verify STORE"), database.query("SELECT * FROM lens") as reader:
            reader.read_all()
