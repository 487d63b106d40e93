"""Compaction merges small segments; whatever ends it, readers see each record once and nothing is lost."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens.storage import compaction
from raylens.storage.compaction import compact
from raylens.storage.errors import Fenced, StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.manifest import read_manifest
from raylens.storage.record import Failure, Record
from raylens.storage.repair import repair
from raylens.storage.run import Run
from raylens.storage.segments import SegmentBuilder
from raylens.storage.server import EmbeddedServer
from raylens.storage.store import Store
from raylens.storage.stream import Stream
from raylens.storage.tally import Tally
from raylens.storage.verify import examine
from raylens.storage.writer import Writer
from tests.builders import commit_all, commit_outcomes, make_failure, make_record, make_run, same

#: The prompts of each commit; an empty one is of a writer that took over.
COMMITS: list[list[int]] = [[], [0, 1], [2, 3], [], [4, 5], [6], [7, 8]]
PROMPTS = 11


def outcome_of(index: int) -> Record | Failure:
    return make_failure(index) if index == 3 else make_record(index)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of five segments, with two prompts to do."""
    folder, _ = make_run(tmp_path, prompts=PROMPTS)
    commit_all(folder, COMMITS, outcome_of)
    return folder


def open_run(folder: RunFolder) -> Run:
    return Store(folder.root.parent.parent)["demo"]


def assert_whole(folder: RunFolder, done: int = 9, run: Run | None = None) -> None:
    """Each record is there once, to a reader, to a query and to a resume, and verify finds no damage."""
    run = open_run(folder) if run is None else run
    assert [outcome.index for outcome in run] == list(range(done))
    assert all(same(outcome, outcome_of(outcome.index)) for outcome in run)
    rows = run.sql("SELECT count(*) AS places, count(DISTINCT (tap, layer, prompt, position)) AS different FROM lens").rows()
    assert rows == [{"places": (done - 1) * 16, "different": (done - 1) * 16}]
    prompts = run.sql("SELECT prompt FROM prompts ORDER BY prompt").to_arrow()["prompt"].to_pylist()
    assert prompts == list(range(done))
    ledger = Ledger(folder)
    ledger.refresh()
    assert ledger.count == done
    found = examine(folder)
    assert (found.damage, found.records + found.failures) == ([], done)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.records.iterdir())


def test_small_segments_become_one(folder: RunFolder) -> None:
    """Five segments become one, with one pair of tables; a second compaction finds nothing to do."""
    assert compact(folder) == (5, 1)
    assert_whole(folder)
    (name,) = names(folder)
    assert name.startswith("merged-000000001-000000006-")
    assert len(list(folder.tables.iterdir())) == 2
    assert examine(folder).leftovers == []
    assert compact(folder) == (1, 1)
    assert names(folder) == [name]


def test_a_merged_run_grows_and_is_merged_again(folder: RunFolder) -> None:
    """Later commits come after; the next compaction takes them and the merged segment together."""
    compact(folder)
    commit_outcomes(folder, outcome_of(9))
    commit_outcomes(folder, outcome_of(10))
    assert_whole(folder, 11)
    assert open_run(folder).counts()["complete"]
    assert compact(folder) == (3, 1)
    assert_whole(folder, 11)
    assert names(folder)[0].startswith("merged-000000001-000000008-")


def test_segments_are_not_made_larger_than_the_target(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are merged as far as they fit."""
    sizes = [path.stat().st_size for path in sorted(folder.records.iterdir())]
    monkeypatch.setattr(compaction, "TARGET_BYTES", sizes[0] + sizes[1] + sizes[2] // 2)
    assert compact(folder) == (5, 3)
    assert_whole(folder)
    assert compact(folder) == (3, 3)


@pytest.mark.parametrize(("spare", "left"), [(0, 1), (-1, 2)])
def test_a_segment_may_have_all_of_the_target(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, spare: int, left: int) -> None:
    """What fits to the byte becomes one; a byte less and the last stays by itself."""
    size = sum(path.stat().st_size for path in folder.records.iterdir())
    monkeypatch.setattr(compaction, "TARGET_BYTES", size + spare)
    assert compact(folder) == (5, left)
    assert_whole(folder)


def test_lines_that_inflate_are_not_put_together(tmp_path: Path) -> None:
    """Segments of a few kilobytes may hold any amount of text: of four whose lines are 40 MiB each two fit."""
    folder, _ = make_run(tmp_path, prompts=5)
    text = "a" * (40 << 20)
    for index in range(4):
        commit_outcomes(folder, make_record(index, text=text))
    commit_outcomes(folder, make_record(4))
    assert sum(path.stat().st_size for path in folder.records.iterdir()) < 64 << 10
    assert compact(folder) == (5, 2)
    assert compact(folder) == (2, 2)
    assert [len(outcome.text) for outcome in open_run(folder).records()] == [len(text)] * 4 + [len("four words of text")]


@pytest.mark.parametrize("damage", [b"", b"no zstd frame at all"])
def test_a_segment_whose_frames_begin_otherwise_is_damaged(folder: RunFolder, damage: bytes) -> None:
    """Nothing is merged before what lines come to is known of all."""
    path = folder.records / names(folder)[4]
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=rf"{path.name} at byte 0: damaged record .*; raylens verify STORE --repair first"):
        compact(folder)
    assert not any(name.startswith("merged") for name in names(folder))


def test_the_watch_sees_the_groups(folder: RunFolder) -> None:
    """What shows progress is given each group once, before any is merged."""
    seen: list[list[int]] = []

    def watch(groups: list[compaction.Group]) -> Iterator[compaction.Group]:
        seen.extend([part.n for part in group] for group in groups)
        yield from groups

    compact(folder, watch)
    assert seen == [[1, 2, 4, 5, 6]]


def test_a_mended_merged_segment_hides_no_commit_that_counts(folder: RunFolder) -> None:
    """Where a commit before it has come back and has a prompt of its own, what a repair keeps stands for itself only."""
    compact(folder)
    builder = SegmentBuilder(read_manifest(folder).uid)
    for index in (0, 9):
        builder.add(outcome_of(index))
    Ledger(folder).replace(builder.write(folder, 1, "0a1b2c3d"))
    assert "which is in the ledger already" in examine(folder).damage[0].problem
    repair(folder)
    assert_whole(folder, 10)


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[Callable[[], int]]:
    """The process ends before its ``step``-th fsync, rename, link or unlink; what is given counts them."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= step:  # nor does anything that cleans up run
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as armed:
        for name in ("fsync", "replace", "rename", "link", "unlink"):
            armed.setattr(os, name, dying(getattr(os, name)))
        yield lambda: calls


def all_steps(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many steps a compaction takes."""
    with killed_at(monkeypatch, 1 << 30) as calls:
        compact(folder)
        return calls()


STEPS = 36


def counted(tally: Tally) -> tuple[int, int, int]:
    """Records, failures and tokens."""
    return tally.records, tally.failures.total(), tally.tokens


def test_the_steps_are_all_of_them(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test below goes through every step."""
    assert all_steps(folder, monkeypatch) == STEPS


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_at_any_step(
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    server: EmbeddedServer,
    open_stream: Callable[..., Stream],
    step: int,
) -> None:
    """Wherever a compaction is killed, nothing is lost or twice; a writer takes over as ever, and the next one ends it."""
    earlier = Tally(folder)
    earlier.follow()
    whole = counted(earlier)
    with killed_at(monkeypatch, step), pytest.raises(Killed):
        compact(folder)
    assert_whole(folder)
    now = Tally(folder)
    now.follow()
    earlier.follow()
    assert counted(now) == counted(earlier) == whole
    Writer(folder, open_stream(server.url, open_run(folder).manifest.uid)).take_over()
    assert_whole(folder)
    commit_outcomes(folder, outcome_of(9))
    compact(folder)
    assert_whole(folder, 10)
    assert len(names(folder)) == 1
    assert len(list(folder.tables.iterdir())) == 2


def killed_after_the_rename(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compaction that has named its segment and emptied nothing yet; that segment."""
    for step in range(1, STEPS):
        with killed_at(monkeypatch, step), pytest.raises(Killed):
            compact(folder)
        ledger = Ledger(folder)
        last = ledger.refresh()[-1]
        if last.segment is not None and last.segment.startswith("merged-"):
            return folder.records / last.segment
    raise AssertionError("no such step")


def test_what_it_was_merged_from_stays_while_the_merged_segment_is_damaged(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage between the steps costs nothing: compaction refuses, and a repair goes back to the old segments."""
    path = killed_after_the_rename(folder, monkeypatch)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert any(one.file == f"records/{path.name}" for one in examine(folder).damage)
    with pytest.raises(StoreError, match=rf"{path.name}: damaged; raylens verify STORE --repair"):
        compact(folder)
    repair(folder)
    assert_whole(folder)
    compact(folder)
    assert_whole(folder)


def test_a_merged_segment_of_any_size_is_not_read_into_memory(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may be anybody's, and a file of a terabyte have no more than a hole."""
    path = killed_after_the_rename(folder, monkeypatch)
    ledger = Ledger(folder)
    last = ledger.refresh()[-1]
    os.truncate(path, 1 << 40)
    ledger.path(last.n).write_bytes(msgspec.json.encode(msgspec.structs.replace(last, bytes=1 << 40)))
    with pytest.raises(StoreError, match="more than such a file has"):
        compact(folder)


def test_wrong_entries_of_a_merged_commit_are_repaired(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair of the merged commit still stands for the commits before it."""
    killed_after_the_rename(folder, monkeypatch)
    ledger = Ledger(folder)
    last = ledger.refresh()[-1]
    entries = [msgspec.structs.replace(entry, offset=1) if entry.index == 5 else entry for entry in last.entries]
    ledger.path(last.n).write_bytes(msgspec.json.encode(msgspec.structs.replace(last, entries=entries)))
    assert "tile" in examine(folder).damage[0].problem
    repair(folder)
    assert_whole(folder)


def test_a_merged_commit_must_have_what_it_stands_for(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that would hide records of others is damage, and compaction deletes nothing for it."""
    killed_after_the_rename(folder, monkeypatch)
    ledger = Ledger(folder)
    last = ledger.refresh()[-1]
    ledger.path(last.n).write_bytes(msgspec.json.encode(msgspec.structs.replace(last, entries=last.entries[:4])))
    before = names(folder)
    with pytest.raises(StoreError, match="lacks records of the commits that it stands for"):
        compact(folder)
    assert names(folder) == before
    assert examine(folder).damage
    repair(folder)
    assert_whole(folder)


def test_a_damaged_segment_is_not_merged(folder: RunFolder) -> None:
    """Damage is named with the remedy, and everything stays."""
    path = folder.records / names(folder)[2]
    path.write_bytes(path.read_bytes()[:-1])
    before = names(folder)
    with pytest.raises(StoreError, match=rf"{path.name}: damaged; raylens verify STORE --repair first"):
        compact(folder)
    assert [name for name in names(folder) if not name.startswith("merged")] == before


def test_nobody_else_is_at_work(folder: RunFolder) -> None:
    """A run that is being done or written is refused."""
    for holding in (folder.lock, folder.writing):
        with holding(), pytest.raises(StoreError, match="wait for it or stop it"):
            compact(folder)
    assert len(names(folder)) == 5


def test_a_writer_that_was_away_stays_fenced(folder: RunFolder) -> None:
    """The numbers of merged commits stay taken."""
    stale = Ledger(folder)
    for _ in zip(range(4), stale.follow(), strict=False):
        pass
    compact(folder)
    with pytest.raises(Fenced):
        stale.append(Commit.empty(stale.next, "99999999"))


def test_readers_that_were_open_go_on(folder: RunFolder) -> None:
    """A run and a result that were made before a compaction are read after it."""
    run = open_run(folder)
    result = run.sql("SELECT count(*) AS places FROM lens")
    first = next(iter(run))
    compact(folder)
    assert_whole(folder, run=run)
    assert same(run[first.id], first)
    assert result.rows() == [{"places": 128}]


def test_a_missing_segment_is_still_an_error(folder: RunFolder) -> None:
    """Looking again in the ledger does not hide that a file is gone."""
    run = open_run(folder)
    len(run)
    (folder.records / names(folder)[0]).unlink()
    with pytest.raises(StoreError, match="the store lacks a committed segment"):
        list(run)


def test_a_run_that_is_compacted_while_it_is_verified_is_good(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before and what is read after do not fit together: it is read again."""
    read = Ledger.read

    def read_then_compact(ledger: Ledger, n: int) -> Commit | None:
        commit = read(ledger, n)
        if n == 4:
            monkeypatch.setattr(Ledger, "read", read)
            compact(folder)
        return commit

    monkeypatch.setattr(Ledger, "read", read_then_compact)
    assert_whole(folder)
    assert len(names(folder)) == 1
