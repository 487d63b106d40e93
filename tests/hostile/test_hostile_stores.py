"""Whatever a file of a store holds, reading gives one clear error that names it; ids are data; readers do not mind writers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from raylens.storage.compaction import compact
from raylens.storage.errors import OtherFormat, StoreError, UsageError
from raylens.storage.exports import tuned_lens
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.pulse import FORMAT, Pulse, write_pulse
from raylens.storage.quarantine import Quarantine
from raylens.storage.record_json import encode_outcome
from raylens.storage.repair import repair
from raylens.storage.run import Run
from raylens.storage.segments import SegmentBuilder
from raylens.storage.store import Store
from raylens.storage.verify import examine
from tests.builders import commit_outcomes, fence, make_failure, make_record, make_run, same
from tests.command import raylens_command
from tests.strategies import ids
from tests.waiting import HUNG

FILES = {
    "manifest": "run.json",
    "certificate": "certificate.json",
    "vocabulary": "vocabulary.msgpack.zst",
    "commit": "commits/000000001.json",
    "segment": "records/000000001-0a1b2c3d.jsonl.zst",
    "lens table": "tables/000000001-0a1b2c3d.lens.parquet",
    "prompts table": "tables/000000001-0a1b2c3d.prompts.parquet",
}
HUGE = 10**30
DEEP = b"[" * 3_000_000


def bomb(folder: Path, path: Path) -> None:
    """Some hundred bytes that become 64 MiB of JSON without end."""
    path.write_bytes(zstandard.compress(b"[" * (64 << 20), 19))


def huge(folder: Path, path: Path) -> None:
    """A header that declares 4 EiB."""
    path.write_bytes(b"\x28\xb5\x2f\xfd\xe0" + (1 << 62).to_bytes(8, "little") + path.read_bytes()[13:])


def sparse(folder: Path, path: Path) -> None:
    """A TiB of which nothing is on the disk."""
    os.truncate(path, 1 << 40)


def swapped(folder: Path, path: Path) -> None:
    """Another file of the run."""
    other = FILES["segment"] if path.name.endswith(".json") else FILES["manifest"]
    shutil.copy(folder / other, path)


def a_folder(folder: Path, path: Path) -> None:
    """No file at all."""
    path.unlink()
    path.mkdir()


def a_pipe(folder: Path, path: Path) -> None:
    """One that nobody writes to, which whoever opens it would wait for."""
    path.unlink()
    os.mkfifo(path)


def a_device(folder: Path, path: Path) -> None:
    """A link to one without an end."""
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "cut": lambda _, path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda _, path: os.truncate(path, 0),
    "noise": lambda _, path: path.write_bytes(bytes(range(256)) * 9),
    "nested JSON": lambda _, path: path.write_bytes(DEEP),
    "nested JSON, compressed": lambda _, path: path.write_bytes(zstandard.compress(DEEP)),
    "bomb": bomb,
    "huge": huge,
    "sparse": sparse,
    "swapped": swapped,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "a device": a_device,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder, _ = make_run(tmp_path_factory.mktemp("made"), prompts=5)
    folder.certificate.write_bytes(b'{"layers": 4}')
    commit_outcomes(folder, make_record(0))
    commit_outcomes(folder, make_record(1), make_failure(2), make_record(3))
    return folder


def copy_of(folder: RunFolder, place: Path) -> RunFolder:
    copy = RunFolder(place / "runs" / "demo")
    shutil.copytree(folder.root, copy.root)
    return copy


def read_all(folder: RunFolder) -> None:
    """Everything a reader may ask for."""
    run = Store(folder.root.parent.parent)["demo"]
    assert run.certificate is not None
    assert len(run.vocabulary) > 0
    assert len(list(run)) == 4
    assert run.sql("SELECT * FROM lens JOIN prompt_rows USING (run, prompt)").rows()


#: A sparse segment still has its records where they should be; only verify minds.
BOTH = [(file, damage) for file in FILES for damage in DAMAGES if (file, damage) != ("segment", "sparse")]


@pytest.mark.parametrize(("file", "damage"), BOTH)
def test_damage_is_one_clear_error(made: RunFolder, tmp_path: Path, file: str, damage: str) -> None:
    """A reader raises one error that names the file, and verify finds it."""
    folder = copy_of(made, tmp_path)
    path = folder.root / FILES[file]
    DAMAGES[damage](folder.root, path)
    with pytest.raises(StoreError) as caught:
        read_all(folder)
    # DuckDB does not say which file it was that it could not read
    assert path.name in str(caught.value) or (file.endswith("table") and "verify STORE names" in str(caught.value))
    assert len(str(caught.value)) < 1_000
    assert any(one.file.endswith(path.name) for one in examine(folder).damage)


def test_a_sparse_segment_is_not_read_to_its_end(made: RunFolder, tmp_path: Path) -> None:
    """verify does not go through a TiB of nothing."""
    folder = copy_of(made, tmp_path)
    sparse(folder.root, folder.root / FILES["segment"])
    read_all(folder)
    assert f"{1 << 40} bytes, its commit says" in examine(folder).damage[0].problem


@pytest.mark.parametrize("size", [0, 5])
def test_a_segment_that_is_a_device_is_not_read_without_end(made: RunFolder, tmp_path: Path, size: int) -> None:
    """Also where its commit says that it has no bytes, as a device does."""
    folder = copy_of(made, tmp_path)
    a_device(folder.root, folder.root / FILES["segment"])
    commit = orjson.loads((folder.root / FILES["commit"]).read_bytes())
    (folder.root / FILES["commit"]).write_bytes(orjson.dumps({**commit, "bytes": size, "entries": []}))
    assert any(one.problem == "damaged (no file)" for one in examine(folder).damage)


@pytest.mark.parametrize("damage", [a_pipe, a_device])
def test_a_list_of_refused_entries_that_is_no_file(
    made: RunFolder, tmp_path: Path, damage: Callable[[Path, Path], object]
) -> None:
    """Status does not wait for it, nor does a writer that has an entry to refuse."""
    folder = copy_of(made, tmp_path)
    path = folder.quarantine / "reasons.jsonl"
    path.touch()
    damage(folder.root, path)
    with pytest.raises(StoreError, match=r"reasons\.jsonl: damaged \(no file\)"):
        Store(tmp_path)["demo"].status()
    with pytest.raises(OSError, match=r"reasons\.jsonl"):
        Quarantine(folder).add("1-1", "why", b"what")


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("manifest", "identity", {"lens": {"top_k": HUGE}}),
        ("certificate", "error", HUGE),
        ("certificate", "layers", HUGE),
        ("certificate", "layers", 0),
        ("certificate", "layers", "four"),
        ("certificate", "layers", None),
        ("commit", "bytes", HUGE),
        ("commit", "entries", [[1, "prompt-1", 0, 1, HUGE, None]]),
    ],
)
def test_numbers_that_cannot_be_are_damage(made: RunFolder, tmp_path: Path, file: str, field: str, value: object) -> None:
    """One that JSON's readers do not hold, or that no model has, is no traceback where it is printed or counted with."""
    folder = copy_of(made, tmp_path)
    path = folder.root / FILES[file]
    said = {**json.loads(path.read_bytes()), field: value}
    said.pop("sha256", None)
    path.write_text(json.dumps(said))
    with pytest.raises(StoreError, match=rf"{path.name}: damaged"):
        read_all(folder)
    assert path.name in {Path(one.file).name for one in examine(folder).damage}


@pytest.mark.parametrize("value", [5, None, [[1]], [None], {"a": 1}])
def test_settings_of_any_type(made: RunFolder, tmp_path: Path, value: object) -> None:
    """What run.json says of the lens is the writer's affair, which may have been another tool."""
    folder = copy_of(made, tmp_path)
    path = folder.root / FILES["manifest"]
    manifest = {**json.loads(path.read_text()), "identity": {"lens": {"track": value, "kind": value}}}
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    run = Store(tmp_path)["demo"]
    assert len(run.query("trajectory", token=" t1", layers="3").rows()) == 1
    with pytest.raises(UsageError, match="not a tracked token of run 'demo'"):
        run.query("token", token="field:answer").rows()
    assert tuned_lens.aggregate(run)["raylens"]["records"] == 3


def test_a_driver_that_says_what_cannot_be_is_not_heard(made: RunFolder, tmp_path: Path) -> None:
    """Its file is a hint, which nothing depends on."""
    folder = copy_of(made, tmp_path)
    write_pulse(folder, Pulse(FORMAT, "host", 1, 0.0, 1, 1, 0, 0, HUGE, 0, 0, ""))
    assert Store(tmp_path)["demo"].status().driver is None


def test_metadata_that_json_tools_do_not_hold_is_damage(made: RunFolder, tmp_path: Path) -> None:
    """No writer stores such; verify says so, and repair takes it out."""
    folder = copy_of(made, tmp_path)
    record = make_record(4, metadata={"n": 7777})
    builder = SegmentBuilder(Run(folder).manifest.uid)
    builder.add_frame(record, zstandard.compress(encode_outcome(record).replace(b"7777", str(HUGE).encode())))
    Ledger(folder).append(builder.write(folder, 2, "0a1b2c3d"))
    with pytest.raises(StoreError, match="metadata: Integer exceeds 64-bit range"):
        _ = Run(folder)[record.id]
    assert ["metadata: Integer exceeds 64-bit range" in one.problem for one in examine(folder).damage] == [True]
    repair(folder)
    assert examine(folder).damage == []
    assert len(Run(folder)) == 4


@pytest.mark.parametrize("file", ["manifest", "commit"])
def test_a_future_version_is_refused_by_its_number(made: RunFolder, tmp_path: Path, file: str) -> None:
    """What a later raylens wrote is named with the versions that this one reads, whatever else is in it."""
    folder = copy_of(made, tmp_path)
    path = folder.root / FILES[file]
    path.write_bytes(orjson.dumps({"format": 9, "all": "else", "is": ["new"]}))
    with pytest.raises(OtherFormat, match=rf"{path.name}: format 9; this raylens reads format 1"):
        read_all(folder)


def test_the_command_prints_one_line(made: RunFolder, tmp_path: Path) -> None:
    """No traceback, the file's name, exit code 6."""
    folder = copy_of(made, tmp_path)
    (folder.root / FILES["lens table"]).write_bytes(b"PAR1")
    done = raylens_command("sql", "-s", str(tmp_path), "SELECT count(*) FROM lens")
    assert done.returncode == 6
    assert len(done.stderr.strip().splitlines()) == 1
    assert FILES["lens table"] in done.stderr
    assert "--repair" in done.stderr


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt_id=ids)
def test_ids_are_data(tmp_path_factory: pytest.TempPathFactory, prompt_id: str) -> None:
    """No id becomes a path or SQL, before a compaction and after it."""
    folder, _ = make_run(tmp_path_factory.mktemp("ids"), prompts=2)
    record = make_record(0, id=prompt_id)
    commit_outcomes(folder, record)
    commit_outcomes(folder, make_failure(1, id=prompt_id + "'"))
    before = sorted(path.relative_to(folder.root) for path in folder.root.rglob("*"))
    for _ in range(2):
        run: Run = Store(folder.root.parent.parent)["demo"]
        assert same(run[prompt_id], record)
        assert orjson.loads(run.line(prompt_id))["id"] == prompt_id
        assert run.sql("SELECT id FROM prompts WHERE id = $id", {"id": prompt_id}).rows() == [{"id": prompt_id}]
        assert examine(folder).damage == []
        compact(folder)
    names = sorted(path.relative_to(folder.root) for path in folder.root.rglob("*"))
    assert len(names) == len(before) - 1, "three files of a segment less, two locks more"


@pytest.mark.parametrize("name", ["x=1", "a*b?[c]", "it's", "größe 👩\u200d🔬"])
def test_a_store_may_lie_anywhere(made: RunFolder, tmp_path: Path, name: str) -> None:
    """No character of a folder's name means anything to a query, and none makes a column."""
    copy_of(made, tmp_path / "a1bxc")
    folder = copy_of(made, tmp_path / name)
    read_all(folder)
    (row,) = (
        Store(tmp_path / name)["demo"].sql("SELECT count(*) AS n, (SELECT count(*) FROM (DESCRIBE lens)) AS c FROM lens").rows()
    )
    assert row == {"n": 48, "c": 21}
    assert examine(folder).damage == []


@pytest.mark.parametrize("name", ["commits", "records", "tables", "quarantine"])
def test_no_run_is_changed_through_the_links_of_another(made: RunFolder, tmp_path: Path, name: str) -> None:
    """A store from elsewhere may have a link to a folder of one's own, whose segments would be its garbage."""
    mine = copy_of(made, tmp_path / "mine")
    theirs, _ = make_run(tmp_path / "theirs")
    for _ in range(3):
        fence(theirs)
    shutil.rmtree(theirs.root / name)
    (theirs.root / name).symlink_to(mine.root / name)
    before = sorted((path, path.stat().st_mtime_ns) for path in mine.root.rglob("*"))
    for change in (compact, repair, lambda folder: folder.lock().__enter__(), lambda folder: folder.writing().__enter__()):
        with pytest.raises(StoreError, match=rf"runs/demo/{name}: a link, through which nothing is written"):
            change(theirs)
    assert sorted((path, path.stat().st_mtime_ns) for path in mine.root.rglob("*")) == before


def test_a_folder_whose_name_is_no_text_hides_no_run(made: RunFolder, tmp_path: Path) -> None:
    """It can be in no JSON and on no page, so it is passed over by whoever lists the runs."""
    folder = copy_of(made, tmp_path)
    shutil.copytree(folder.root, folder.root.with_name(os.fsdecode(b"caf\xe9")))
    assert Store(tmp_path).names() == [one.root.name for one in Store(tmp_path).folders()] == ["demo"]
    for command in ("runs", "status", "verify"):
        done = raylens_command(command, str(tmp_path), "--json")
        assert done.returncode == 0, done.stderr
        assert "demo" in done.stdout


def test_a_store_whose_name_is_no_text_is_refused(made: RunFolder, tmp_path: Path) -> None:
    """Neither Arrow nor DuckDB could open its tables."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    copy_of(made, place)
    done = raylens_command("verify", str(place))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: store {tmp_path}/caf‹E9›: not UTF-8; rename it, or give a link to it that is\n"
    link = tmp_path / "link"
    link.symlink_to(place)
    assert raylens_command("verify", str(link)).returncode == 0


WRITER = """
import sys
from pathlib import Path
from raylens.storage.layout import RunFolder
from tests.builders import commit_outcomes, make_record
for index in range(40):
    commit_outcomes(RunFolder(Path(sys.argv[1])), make_record(index))
"""
COMPACTER = """
import sys
from pathlib import Path
from raylens.storage.compaction import compact
from raylens.storage.layout import RunFolder
from raylens.storage.run import Run
folder = RunFolder(Path(sys.argv[1]))
while not Run(folder).counts()["complete"]:
    compact(folder)
compact(folder)
"""
READER = """
import sys
from pathlib import Path
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.run import Run
from tests.builders import make_record, same
seen = queried = 0
while seen < 40 or queried < 40:
    run = Run(RunFolder(Path(sys.argv[1])))
    found = list(run)
    assert [one.index for one in found] == list(range(len(found))) and len(found) >= seen
    assert all(same(one, make_record(one.index)) for one in found)
    seen = len(found)
    try:
        (row,) = run.sql("SELECT count(*) AS n, count(DISTINCT prompt) AS d FROM lens JOIN prompts USING (prompt)").rows()
    except StoreError as error:  # compacted in between, as documented; nothing else is allowed
        assert any(words in str(error) for words in ("No such file", "No files found", "no tables for", "just compacted")), error
        continue
    assert row["n"] == 16 * row["d"] and row["d"] >= queried, row
    queried = row["d"]
"""


def test_two_readers_a_writer_and_a_compaction_at_once(tmp_path: Path) -> None:
    """Each reader sees every record once and never less than before, while the run grows and is compacted."""
    folder, _ = make_run(tmp_path, prompts=40)
    scripts = [WRITER, COMPACTER, READER, READER]
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(folder.root)], stderr=subprocess.PIPE, text=True)
        for script in scripts
    ]
    for process in started:
        _, problems = process.communicate(timeout=HUNG)
        assert process.returncode == 0, problems
    assert examine(folder).damage == []
    assert len(list(folder.records.iterdir())) == 1


BIG = (
    "SELECT token_id, logprob, token, prompt, position, layer FROM topk ORDER BY logprob, token_id, prompt, position, layer, tap"
)


def test_a_query_over_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that take several times the limit are sorted, in a temporary folder that is gone afterwards."""
    folder, _ = make_run(tmp_path, prompts=8)
    for index in range(8):
        commit_outcomes(folder, make_record(index, tokens=400, layers=tuple(range(80)), k=10))
    run = Store(tmp_path)["demo"]
    monkeypatch.setenv("RAYLENS_SQL_MEMORY", "120MB")
    assert run.sql("SELECT current_setting('memory_limit') AS m").rows() == [{"m": "114.4 MiB"}]
    count, size, last = 0, 0, float("-inf")
    for batch in run.sql(BIG).batches():
        count, size = count + len(batch), size + batch.nbytes
        values = batch["logprob"].to_numpy()
        assert values[0] >= last
        assert (values[1:] >= values[:-1]).all()
        last = values[-1]
    assert count == 8 * 400 * 80 * 2 * 10
    assert size > 120e6


@pytest.mark.parametrize("value", ["", "much", "1 parsec"])
def test_a_limit_that_is_no_size_is_refused(made: RunFolder, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The variable is named, with what may be given."""
    monkeypatch.setenv("RAYLENS_SQL_MEMORY", value)
    with pytest.raises(UsageError, match=f"RAYLENS_SQL_MEMORY={value}: .*such as 2GB"):
        read_all(made)
