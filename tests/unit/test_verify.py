"""verify names whatever damage is done to a run, and repair leaves a clean run with every record that can be proven."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylens.storage import durable as durable_module
from raylens.storage import repair as repair_module
from raylens.storage import verify as verify_module
from raylens.storage.certificate import read_certificate, write_certificate
from raylens.storage.errors import Fenced, StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.manifest import read_manifest
from raylens.storage.quarantine import Quarantine
from raylens.storage.record import Failure, Record
from raylens.storage.record_json import encode_outcome
from raylens.storage.repair import repair
from raylens.storage.segments import SegmentBuilder
from raylens.storage.store import Store
from raylens.storage.verify import examine
from raylens.storage.vocabulary import read_vocabulary, write_vocabulary
from tests.builders import (
    VOCABULARY_SIZE,
    commit_all,
    commit_outcomes,
    make_failure,
    make_record,
    make_run,
    make_vocabulary,
    same,
)

PROMPTS = 10
#: The prompts of each commit; commits 0 and 3 are empty, as of writers that took over.
COMMITS: list[list[int]] = [[], [0, 1, 2], [3, 4], [], [5, 6, 7]]


def outcome_of(index: int) -> Record | Failure:
    return make_failure(index) if index == 4 else make_record(index)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with prompts 0 to 7 in three segments, and 8 and 9 to do."""
    folder, _ = make_run(tmp_path, prompts=PROMPTS)
    commit_all(folder, COMMITS, outcome_of)
    assert not examine(folder).damage
    return folder


def segment(folder: RunFolder, n: int) -> Path:
    return folder.records / f"{n:09d}-0a1b2c3d.jsonl.zst"


def commit_file(folder: RunFolder, n: int) -> Path:
    return folder.commits / f"{n:09d}.json"


def change_commit(n: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[RunFolder], None]:
    """A damage that leaves a commit file readable."""

    def damage(folder: RunFolder) -> None:
        value = json.loads(commit_file(folder, n).read_bytes())
        change(value)
        commit_file(folder, n).write_text(json.dumps(value))

    return damage


def swap(folder: RunFolder) -> None:
    one, other = segment(folder, 1), segment(folder, 4)
    one.rename(folder.root / "x")
    other.rename(one)
    (folder.root / "x").rename(other)


def bomb(folder: RunFolder) -> None:
    """The first frame declares 4 GiB more than it has."""
    data = segment(folder, 1).read_bytes()
    header = zstandard.frame_header_size(data)
    segment(folder, 1).write_bytes(data[:4] + b"\xe4" + (1 << 62).to_bytes(8, "little") + data[header:])


def cut(path: Callable[[RunFolder], Path], size: int) -> Callable[[RunFolder], None]:
    return lambda folder: os.truncate(path(folder), size)


def flip_last_record(folder: RunFolder) -> None:
    data = bytearray(segment(folder, 1).read_bytes())
    data[-20] ^= 1
    segment(folder, 1).write_bytes(data)


# What is done to the run, the file that verify names, what it says of it, and the prompts that a repair cannot keep.
DAMAGES: dict[str, tuple[Callable[[RunFolder], Any], str, str, set[int]]] = {
    "byte of a record": (flip_last_record, "records/000000001", "1 of 3 records are damaged", {2}),
    "segment cut": (cut(lambda folder: segment(folder, 4), 300), "records/000000004", "its commit says", {5, 6, 7}),
    "segment empty": (cut(lambda folder: segment(folder, 2), 0), "records/000000002", "0 bytes", {3, 4}),
    "segment longer": (
        lambda folder: segment(folder, 1).write_bytes(segment(folder, 1).read_bytes() + b"more"),
        "records/000000001", "its commit says", set(),
    ),
    "segment deleted": (lambda folder: segment(folder, 2).unlink(), "records/000000002", "No such file", {3, 4}),
    "segment a folder": (
        lambda folder: (segment(folder, 2).unlink(), segment(folder, 2).mkdir()), "records/000000002", "Is a directory", {3, 4},
    ),
    "segments swapped": (swap, "records/000000004", "its commit says", {0, 1, 2, 5, 6, 7}),
    "record that declares too much": (bomb, "records/000000001", "its commit says", {0, 1, 2}),
    "commit cut": (cut(lambda folder: commit_file(folder, 1), 50), "commits/000000001", "damaged", set()),
    "commit empty": (cut(lambda folder: commit_file(folder, 3), 0), "commits/000000003", "damaged", set()),
    "commit deleted": (lambda folder: commit_file(folder, 2).unlink(), "commits/000000002", "missing", set()),
    "fence deleted": (lambda folder: commit_file(folder, 0).unlink(), "commits/000000000", "missing", set()),
    "commit a folder": (
        lambda folder: (commit_file(folder, 1).unlink(), commit_file(folder, 1).mkdir()), "commits/000000001", "director", set(),
    ),
    "commit of another number": (change_commit(2, lambda one: one.update(n=7)), "commits/000000002", "commit 7", set()),
    "path outside": (
        change_commit(1, lambda one: one.update(segment="../../../etc/passwd")), "commits/000000001", "etc/passwd", set(),
    ),
    "segment of another commit": (
        change_commit(2, lambda one: one.update(segment="000000001-0a1b2c3d.jsonl.zst")), "commits/000000002", "another", set(),
    ),
    "segment of another writer": (
        change_commit(1, lambda one: one.update(writer="99999999")), "commits/000000001", "another", set(),
    ),
    "merged from later commits": (
        change_commit(2, lambda one: one.update(segment="merged-000000003-000000002-0a1b2c3d.jsonl.zst")),
        "commits/000000002", "another", set(),
    ),
    "index twice": (change_commit(4, lambda one: one["entries"][1].__setitem__(0, 3)), "commits/000000004", "prompt 3", set()),
    "index twice in a commit": (
        change_commit(4, lambda one: one["entries"][1].__setitem__(0, 5)), "commits/000000004", "prompt 5", set(),
    ),
    "index outside": (change_commit(4, lambda one: one["entries"][1].__setitem__(0, 10)), "commits/000000004", "has 10", set()),
    "ranges overlap": (change_commit(1, lambda one: one["entries"][1].__setitem__(2, 1)), "commits/000000001", "tile", set()),
    "huge length": (change_commit(1, lambda one: one["entries"][2].__setitem__(3, 1 << 40)), "commits/000000001", "tile", set()),
    "huge index": (
        change_commit(1, lambda one: one["entries"][0].__setitem__(0, 1 << 62)), "commits/000000001", "damaged", set(),
    ),
    "other id": (change_commit(1, lambda one: one["entries"][0].__setitem__(1, "x")), "records/000000001", "not prompt 0", set()),
    "other tokens": (change_commit(1, lambda one: one["entries"][0].__setitem__(4, 9)), "records/000000001", "1 of 3", set()),
    "entry missing": (change_commit(1, lambda one: one["entries"].pop()), "commits/000000001", "tile", set()),
    "first entry missing": (change_commit(1, lambda one: one["entries"].pop(0)), "commits/000000001", "tile", set()),
    "other checksum": (change_commit(1, lambda one: one.update(crc32=1)), "records/000000001", "crc32", set()),
    "certificate": (lambda folder: folder.certificate.write_text("{"), "certificate.json", "damaged", set()),
    "certificate a list": (lambda folder: folder.certificate.write_text("[]"), "certificate.json", "Expected `object`", set()),
}  # fmt: skip


def assert_kept(folder: RunFolder, lost: set[int]) -> None:
    """The run is clean and readers show each prompt that was not lost, as it was."""
    found = examine(folder)
    assert found.damage == []
    run = Store(folder.root.parent.parent)["demo"]
    kept = {index for indexes in COMMITS for index in indexes} - lost
    assert {outcome.index for outcome in run} == kept
    assert all(same(outcome, outcome_of(outcome.index)) for outcome in run)
    entered = [entry.index for commit in Ledger(folder).refresh() for entry in commit.entries]
    assert sorted(entered) == sorted(kept), "each once"


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_repaired(folder: RunFolder, name: str) -> None:
    """verify names the file; repair keeps all but the records that are gone, and a resume enters just those."""
    damage, file, text, lost = DAMAGES[name]
    damage(folder)
    named = [(one.file, one.problem) for one in examine(folder).damage]
    assert any(found.startswith(file) and text in problem for found, problem in named), named
    assert repair(folder)
    assert_kept(folder, lost)
    assert repair(folder) == [], "nothing more to do"
    commit_outcomes(folder, *(outcome_of(index) for index in sorted({*lost, 8, 9})))
    assert Store(folder.root.parent.parent)["demo"].counts()["complete"]
    assert examine(folder).damage == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_anywhere(folder: RunFolder, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A byte changed in any segment or commit is found, unless it changes nothing that counts; repair keeps the rest."""
    copy = RunFolder(tmp_path_factory.mktemp("copy") / "runs" / "demo")
    shutil.copytree(folder.root, copy.root)
    path = data.draw(st.sampled_from(sorted([*copy.commits.iterdir(), *copy.records.iterdir()])))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = examine(copy)
    if found.untouchable:
        assert found.damage
        with pytest.raises(StoreError, match="format"):
            repair(copy)
        return
    assert found.damage or path.parent == copy.commits, "every byte of a segment counts"
    repair(copy)
    entered = {entry.index for commit in Ledger(copy).refresh() for entry in commit.entries}
    assert_kept(copy, set(range(8)) - entered)
    in_segment = COMMITS[int(path.name[:9])]
    assert set(range(8)) - entered <= set(in_segment[:] if path.parent == copy.records else [])
    assert path.parent == copy.commits or len(entered) >= 7, "of a segment only the record with the byte is gone"


class Crashed(BaseException):
    """Stands for the end of the process."""


STEPS = ["link", "fsync 1", "fsync 2", "fsync 3", "fsync 4", "fsync 5", "fsync 6", "fsync 7", "rename"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("damage", ["byte of a record", "commit cut", "commit deleted"])
def test_a_repair_that_dies_loses_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, damage: str, step: str) -> None:
    """Wherever a repair is killed, the next one keeps the same records."""
    do, _, _, lost = DAMAGES[damage]
    do(folder)
    before = sorted(path.read_bytes() for path in folder.records.iterdir())
    fsync, calls = os.fsync, 0

    def dying_fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        fsync(descriptor)
        if step == f"fsync {calls}":
            raise Crashed

    def dying(*_: Any) -> None:
        raise Crashed

    with monkeypatch.context() as armed:
        armed.setattr(os, "fsync", dying_fsync)
        if step == "link":
            armed.setattr(repair_module, "_replace", dying)
        if step == "rename":
            armed.setattr(repair_module, "_set_aside", dying)
        with pytest.raises(Crashed):
            repair(folder)
    repair(folder)
    assert_kept(folder, lost)
    on_disk = [path.read_bytes() for path in [*folder.records.iterdir(), *folder.damaged.glob("*.zst*")]]
    assert all(content in on_disk for content in before), "no byte is deleted by a repair"


def test_two_damages_at_once(folder: RunFolder) -> None:
    """A gap, a damaged segment and an unreadable commit are mended together."""
    for name in ("commit deleted", "byte of a record"):
        DAMAGES[name][0](folder)
    commit_file(folder, 4).write_bytes(b"")
    assert len(examine(folder).damage) == 3
    repair(folder)
    assert_kept(folder, {2})


def test_repair_waits_for_nobody(folder: RunFolder) -> None:
    """A run that is being done or written is refused, and left as it is."""
    flip_last_record(folder)
    for holding in (folder.lock, folder.writing):
        with holding(), pytest.raises(StoreError, match="wait for it or stop it"):
            repair(folder)
    with folder.alone(), pytest.raises(StoreError, match="being repaired or moved"), folder.writing():
        pass
    repair(folder)
    assert_kept(folder, {2})


def test_repair_fences_a_writer_elsewhere(folder: RunFolder) -> None:
    """A writer that no lock of this machine holds back cannot commit after a repair."""
    elsewhere = Ledger(folder)
    elsewhere.refresh()
    flip_last_record(folder)
    repair(folder)
    with pytest.raises(Fenced):
        elsewhere.append(Commit.empty(elsewhere.next, "99999999"))


def test_repair_mends_what_was_committed_until_its_fence(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the last commit is missing shows only once a writer of another machine has committed after it."""
    elsewhere = Ledger(folder)
    elsewhere.refresh()
    flip_last_record(folder)
    commit_file(folder, 4).unlink()
    fence = repair_module._fence

    def late(folder: RunFolder) -> None:
        builder = SegmentBuilder(read_manifest(folder).uid)
        builder.add(outcome_of(8))
        elsewhere.append(builder.write(folder, elsewhere.next, "99999999"))
        fence(folder)

    monkeypatch.setattr(repair_module, "_fence", late)
    repair(folder)
    assert examine(folder).damage == []
    assert {outcome.index for outcome in Store(folder.root.parents[1])["demo"]} == {0, 1, 3, 4, 5, 6, 7, 8}


def test_a_run_json_damaged_until_the_fence_is_not_guessed_either(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mended is what is found after the fence, and so is what hinders it."""
    flip_last_record(folder)
    segments = sorted(path.read_bytes() for path in folder.records.iterdir())
    monkeypatch.setattr(repair_module, "_fence", lambda folder: folder.manifest.write_text("{"))
    with pytest.raises(StoreError, match="nothing says what the records are of"):
        repair(folder)
    assert sorted(path.read_bytes() for path in folder.records.iterdir()) == segments


def test_a_run_that_changes_while_it_is_read_is_read_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that a compaction elsewhere has moved meanwhile is no damage."""
    path = segment(folder, 1)
    away = path.rename(folder.root / "away")
    read = verify_module.read_vocabulary

    def meanwhile(vocabulary: Path) -> Any:
        if away.exists():
            away.rename(path)
            os.utime(folder.commits)
        return read(vocabulary)

    monkeypatch.setattr(verify_module, "read_vocabulary", meanwhile)
    assert examine(folder).damage == []


def test_repair_enters_no_prompt_outside_the_corpus(folder: RunFolder) -> None:
    """Where a commit cannot be read, what its segment holds is searched, and only prompts of the run are kept."""
    commit_outcomes(folder, outcome_of(8), make_record(PROMPTS))
    commit_file(folder, 5).write_bytes(b"")
    with segment(folder, 5).open("ab") as file:
        file.write(zstandard.compress(encode_outcome(make_failure(-1))))
    repair(folder)
    assert examine(folder).damage == []
    assert [entry.index for commit in Ledger(folder).refresh() for entry in commit.entries] == list(range(9))


def test_run_json_is_not_guessed(folder: RunFolder) -> None:
    """Without run.json the damage is named with the remedy, and a repair changes nothing."""
    folder.manifest.write_text("{")
    flip_last_record(folder)
    names = [path for path in folder.root.rglob("*") if "lock" not in path.name]
    assert "run --fresh" in examine(folder).damage[0].problem
    with pytest.raises(StoreError, match="nothing says what the records are of"):
        repair(folder)
    folder.manifest.unlink()
    assert examine(folder).damage[0].file == "run.json"
    assert [path for path in folder.root.rglob("*") if "lock" not in path.name] == [
        one for one in names if one.name != "run.json"
    ]


@pytest.mark.parametrize("name", ["run.json", "certificate.json", "vocabulary.msgpack.zst"])
def test_no_bit_of_a_file_that_is_written_once_changes_unseen(folder: RunFolder, name: str) -> None:
    """What is not found leaves what the file says as it was."""
    write_certificate(folder, {"layers": 4, "error": 1.25e-7, "taps": {"resid_post": "output of the block"}})

    def read() -> tuple[Any, Any, Any]:
        certificate = read_certificate(folder)
        measured = [certificate.get(field) for field in ("layers", "error", "taps")]
        return read_manifest(folder), measured, list(read_vocabulary(folder.vocabulary))

    path, before, found = folder.root / name, read(), 0
    written = path.read_bytes()
    for at in range(0, len(written), 1 + len(written) // 150):
        changed = bytearray(written)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        if name in {damage.file for damage in examine(folder).damage}:
            found += 1
        else:
            assert read() == before, at
    assert found > 50


def test_run_json_and_certificate_of_before_they_were_sealed_are_read(folder: RunFolder) -> None:
    """They are not checked."""
    manifest = read_manifest(folder)
    folder.manifest.write_bytes(msgspec.json.encode(manifest))
    folder.certificate.write_text('{"layers": 4}')
    assert (read_manifest(folder), read_certificate(folder)) == (manifest, {"layers": 4})
    assert examine(folder).damage == []


def test_a_vocabulary_is_written_anew(folder: RunFolder) -> None:
    """A damaged vocabulary is moved aside; until the run writes it anew, verify says so."""
    cut(lambda one: one.vocabulary, 100)(folder)
    assert examine(folder).damage[0].file == "vocabulary.msgpack.zst"
    assert repair(folder) == ["vocabulary.msgpack.zst: moved to damaged/"]
    assert "No such file" in examine(folder).damage[0].problem


def test_a_vocabulary_of_another_size_is_damage(folder: RunFolder) -> None:
    """As of another model: ids of the records would have no token, or another."""
    write_vocabulary(folder.vocabulary, make_vocabulary()[:-1])
    (damage,) = examine(folder).damage
    assert damage.file == "vocabulary.msgpack.zst"
    assert f"holds {VOCABULARY_SIZE - 1} tokens, run.json says {VOCABULARY_SIZE}" in damage.problem


def test_what_is_counted(folder: RunFolder) -> None:
    """Commits, records, failures, bytes and refusals are of the whole run; lost is what a repair cannot keep."""
    commit_outcomes(folder, make_failure(8))
    for entry in ("1-0", "2-0"):
        Quarantine(folder).add(entry, "not a valid frame", b"poison")
    size = sum(path.stat().st_size for path in folder.records.iterdir())
    found = examine(folder)
    assert (found.commits, found.records, found.failures, found.lost) == (6, 7, 2, 0)
    assert (found.size, found.quarantined) == (size, 2)
    flip_last_record(folder)
    found = examine(folder)
    assert (found.commits, found.records, found.failures, found.lost) == (6, 6, 2, 1)


def test_what_was_moved_aside_is_listed(folder: RunFolder) -> None:
    """Leftovers are what may be deleted, and so is what a repair keeps of the damage."""
    flip_last_record(folder)
    repair(folder)
    segment = [f"000000001-0a1b2c3d.{end}" for end in ("jsonl.zst", "lens.parquet", "prompts.parquet")]
    assert examine(folder).leftovers == [f"damaged/{name}" for name in (*segment, "000000001.json")]


def test_repair_tells_what_it_did(folder: RunFolder) -> None:
    """How many records were kept of a commit, from how many tables were made again, and what was removed."""
    flip_last_record(folder)
    (folder.tables / "000000002-0a1b2c3d.lens.parquet").unlink()
    left = folder.root / f".run.json.0a1b2c3d{durable_module.TEMPORARY}"
    left.write_text("{")
    assert repair(folder) == [
        "commits/000000001.json: kept 2 records; what was there is in damaged/",
        "tables/000000002-0a1b2c3d: made again from 2 records",
        f"{left.name}: removed",
    ]


def test_each_damage_of_a_file_is_kept(folder: RunFolder) -> None:
    """A file that is damaged again and again does not take the place of what was moved aside before."""
    contents = [b"first", b"second", b"third", b"fourth"]
    for content in contents:
        commit_file(folder, 1).write_bytes(content)
        repair(folder)
    assert sorted(path.read_bytes() for path in folder.damaged.glob("000000001.json*")) == sorted(contents)
    assert_kept(folder, set())


def test_a_newer_format_is_no_damage_to_mend(folder: RunFolder) -> None:
    """What a newer raylens wrote is named and not touched."""
    change_commit(4, lambda one: one.update(format=2))(folder)
    before = commit_file(folder, 4).read_bytes()
    assert "format 2" in examine(folder).damage[0].problem
    with pytest.raises(StoreError, match="use the raylens that wrote it"):
        repair(folder)
    assert commit_file(folder, 4).read_bytes() == before


def test_a_stray_commit_far_away_asks_for_no_billion_others(folder: RunFolder) -> None:
    """A file with a number that no ledger reaches is named."""
    (folder.commits / "999999999999999999.json").write_text("{}")
    assert "999999999999999994 commits are missing before it; move it away" in examine(folder).damage[-1].problem
    with pytest.raises(StoreError, match="move it away"):
        repair(folder)


def test_leftovers_are_no_damage(folder: RunFolder) -> None:
    """Files of killed processes are listed; a repair removes what was never whole, the next writer the rest."""
    (folder.commits / f".000000001.json.0a1b2c3d{durable_module.TEMPORARY}").write_text("{")
    (folder.root / f".run.json.0a1b2c3d{durable_module.TEMPORARY}").write_text("{")
    (folder.records / "000000003-ffffffff.jsonl.zst").write_bytes(b"x")
    found = examine(folder)
    assert found.damage == []
    assert found.leftovers == [
        ".run.json.0a1b2c3d.tmp", "commits/.000000001.json.0a1b2c3d.tmp", "records/000000003-ffffffff.jsonl.zst",
    ]  # fmt: skip
    repair(folder)
    assert examine(folder).leftovers == ["records/000000003-ffffffff.jsonl.zst"]
    assert_kept(folder, set())


@pytest.mark.parametrize("commits", [[[8, 9]], [[8], [9]], [[9], [8]]], ids=str)
def test_an_id_that_two_prompts_have(folder: RunFolder, commits: list[list[int]]) -> None:
    """One of them would be in no list: readers say so, verify finds both, and after a repair the run makes both anew."""
    commit_all(folder, commits, lambda index: make_record(index, id="prompt-8"))
    run = Store(folder.root.parents[1])["demo"]
    with pytest.raises(StoreError, match=r"prompts [89] and [89] have one id, 'prompt-8'; raylens verify STORE --repair"):
        list(run)
    found = examine(folder)
    assert all("has the id of another prompt, 'prompt-8'" in one.problem for one in found.damage)
    assert [one.file for one in found.damage] == [f"records/{segment(folder, 5 + n).name}" for n in range(len(commits))]
    assert (found.records, found.lost) == (7, 2)
    repair(folder)
    assert_kept(folder, set())
    commit_outcomes(folder, make_record(8), make_record(9))
    assert Store(folder.root.parents[1])["demo"].counts()["complete"]
    assert examine(folder).damage == []


def test_a_prompt_that_is_entered_twice_has_no_double(folder: RunFolder) -> None:
    """Only the later one is damage, and the first is kept."""
    commit_outcomes(folder, make_record(1))
    (damage,) = examine(folder).damage
    assert (damage.file, damage.problem) == ("commits/000000005.json", "enters prompt 1, which is in the ledger already")
    repair(folder)
    assert_kept(folder, set())


#: Records that no writer stores, in segments whose checksums are right.
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "positions beyond the prompt": {"positions": [0, 1, 2, 99]},
    "positions twice": {"positions": [1, 1, 1, 1]},
    "too few tokens": {"tokens": [" a"]},
    "no tokens": {"tokens": [], "token_ids": []},
    "an id beyond the vocabulary": {"token_ids": [1, 2, 3, VOCABULARY_SIZE]},
    "tracked tokens beyond the vocabulary": {"tracked": [VOCABULARY_SIZE]},
    "no layers": {"layers": []},
    "no such tap": {"taps": {"head_2000": make_record(9).taps["attn_out"]}},
    "more than certain": {"taps": {name: replace(tap, logprobs=-tap.logprobs) for name, tap in make_record(9).taps.items()}},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_record_that_cannot_be_is_damage(folder: RunFolder, name: str) -> None:
    """Whoever reads it gets one clear error that names the segment; a repair keeps its neighbours."""
    commit_outcomes(folder, make_record(8), replace(make_record(9), **IMPOSSIBLE[name]))
    with pytest.raises(StoreError, match=r"000000005-.* at byte [0-9]+: not a record of this format"):
        Store(folder.root.parents[1])["demo"]["prompt-9"]
    (damage,) = examine(folder).damage
    assert damage.file == f"records/{segment(folder, 5).name}"
    assert repair(folder)[0].startswith("commits/000000005.json: kept 1 records")
    assert examine(folder).damage == []
    assert {one.index for one in Store(folder.root.parents[1])["demo"]} == set(range(9))


def test_a_repair_makes_no_commit_that_is_too_large(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a commit that is too large to be read, the records are kept whose entries are of a size that they may have, as far as
    there is room for them in one file. The run does the others again."""
    limit = 1 << 17
    commit_outcomes(folder, make_record(8), make_failure(9, kind="k" * limit))  # as of an older writer
    monkeypatch.setattr(durable_module, "MAX_FILE_BYTES", limit)
    (damage,) = examine(folder).damage
    assert damage.file == "commits/000000005.json"
    assert repair(folder)[0].startswith("commits/000000005.json: kept 1 records")
    assert examine(folder).damage == []
    assert {one.index for one in Store(folder.root.parents[1])["demo"]} == set(range(9))
    monkeypatch.setattr(durable_module, "MAX_FILE_BYTES", 1 << 30)
    other, _ = make_run(folder.root.parents[1], name="other", prompts=9)
    commit_outcomes(other, *(make_failure(index, id=f"{index}" * 20_000) for index in range(9)))
    monkeypatch.setattr(durable_module, "MAX_FILE_BYTES", limit)
    assert len(examine(other).damage) == 1
    assert repair(other)[0].startswith("commits/000000000.json: kept 3 records")
    assert examine(other).damage == []


def test_a_commit_that_links_to_nothing(folder: RunFolder) -> None:
    """As in a copy whose large files were not fetched: it is told, no writer goes on, and repair puts it aside."""
    last = commit_file(folder, 4)
    last.unlink()
    last.symlink_to("/nowhere/000000004.json")
    with pytest.raises(StoreError, match="a link to a file that is not there"):
        Ledger(folder).refresh()
    assert [damage.file for damage in examine(folder).damage] == ["commits/000000004.json"]
    assert list(repair(folder)) != []
    assert examine(folder).damage == []
    assert (folder.damaged / last.name).is_symlink()
    assert {outcome.index for outcome in Store(folder.root.parents[1])["demo"]} == set(range(8))


def test_a_folder_that_cannot_be_read_is_one_error(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of another user, beside which the rest of the store is examined."""

    def refuse(_path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder.commits))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(StoreError, match=r"commits: Permission denied"):
        examine(folder)
