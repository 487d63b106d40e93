"""The writer between a real Valkey and real files: nothing is lost, nothing is stored twice, whoever dies when."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens.storage import building as building_module
from raylens.storage import frame as frame_module
from raylens.storage import gathering as gathering_module
from raylens.storage import server as server_module
from raylens.storage import writer as writer_module
from raylens.storage.errors import BrokerError, Fenced
from raylens.storage.frame import decode_frame
from raylens.storage.gathering import ENTRY_BYTES, Gathering
from raylens.storage.ledger import Ledger
from raylens.storage.payload import encode_payload
from raylens.storage.quarantine import Quarantine
from raylens.storage.record import Record
from raylens.storage.server import EmbeddedServer
from raylens.storage.store import Store
from raylens.storage.stream import Stream, connect
from raylens.storage.writer import Orders, Writer
from raylens.workers.publish import publish
from tests.builders import make_failure, make_frames, make_large_record, make_record, make_run
from tests.clock import Clock
from tests.servers import RealServer, answers
from tests.waiting import HUNG, wait_until
from tests.writing import Bench, drain

PROMPTS = 8
#: Records of three full frames in the test of a full server, some 2.5 MB each.
LARGE = 4


def make_long_record(index: int, seed: int | None = None) -> Record:
    """A record that takes three of the small frames of these tests."""
    record = make_record(index, seed=seed, tokens=60, k=10)
    assert len(make_frames(record, "run")) == 3
    return record


class Crashed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit at each step, do not wait for entries, and cut payloads into small frames."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    monkeypatch.setattr(frame_module, "CHUNK_BYTES", 4200)


@pytest.fixture
def real_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the size they have in a run."""
    monkeypatch.setattr(frame_module, "CHUNK_BYTES", 1 << 20)


@pytest.fixture
def never_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to the test when to commit."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)


@pytest.fixture
def bench(server: EmbeddedServer, tmp_path: Path, open_stream: Callable[..., Stream]) -> Iterator[Bench]:
    bench = Bench.on(server, tmp_path, open_stream, PROMPTS)
    yield bench
    bench.stream.drop()


@pytest.fixture
def own_bench(own_server: EmbeddedServer, tmp_path: Path, open_stream: Callable[..., Stream]) -> Bench:
    """A bench whose server the test may kill."""
    return Bench.on(own_server, tmp_path, open_stream, PROMPTS)


@pytest.mark.usefixtures("real_frames")
def test_outcomes_reach_the_store_and_leave_the_stream(bench: Bench) -> None:
    """Records of one frame and of several, and failures, are stored as sent, and the stream ends empty."""
    outcomes = [make_record(0), make_large_record(1), make_failure(2), make_record(3, dtype="float32")]
    for outcome in outcomes:
        receipt = publish(bench.stream, bench.manifest.uid, outcome)
        assert receipt.index == outcome.index
        assert bench.stream.missing(receipt.entries) == set()
    drain(bench.writer())
    bench.assert_stored(*outcomes)
    bench.assert_no_garbage()


@pytest.mark.usefixtures("never_commit")
def test_nothing_is_deleted_before_its_commit(bench: Bench) -> None:
    """Until the commit exists every entry stays in the stream; afterwards they are gone."""
    entries = bench.publish(make_record(0)) + bench.publish(make_long_record(1))
    writer = bench.writer()
    for _ in range(3):
        writer.step()
        assert bench.stream.missing(entries) == set()
        assert bench.stored() == []
    writer.commit()
    assert bench.stream.missing(entries) == set(entries)
    bench.assert_stored(make_record(0), make_long_record(1))


# Points at which a writer may die while it commits, in the order in which it passes them: its n-th call of fsync
# (segment, its folder, its two tables, their folder, the commit's temporary file, its folder), link, and the deletion from the
# stream.
CRASH_POINTS = [*(f"fsync {call}" for call in range(1, 7)), "link", "fsync 7", "delete"]
COMMITTED_FROM = CRASH_POINTS.index("fsync 7")


class DiesBeforeDelete(Stream):
    """A stream whose reader dies when it comes to delete."""

    def delete(self, entry_ids: Any) -> None:
        raise Crashed


def arm(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Make the process end at a crash point."""
    fsync, calls = os.fsync, 0

    def dying_fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if point == f"fsync {calls}":
            raise Crashed
        fsync(descriptor)

    def dying_link(*arguments: Any) -> None:
        raise Crashed

    monkeypatch.setattr(os, "fsync", dying_fsync)
    if point == "link":
        monkeypatch.setattr(os, "link", dying_link)


@pytest.mark.usefixtures("never_commit")
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_writer_that_dies_in_a_commit_loses_and_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Whichever step of a commit a writer dies at, the next one finishes the work, once, and cleans up."""
    outcomes = [make_record(0), make_long_record(1), make_failure(2)]
    entries = [entry for outcome in outcomes for entry in bench.publish(outcome)]
    stream = DiesBeforeDelete(bench.server.url, bench.manifest.uid) if point == "delete" else None
    first = bench.writer(stream)
    first.step()
    with monkeypatch.context() as armed:
        arm(armed, point)
        with pytest.raises(Crashed):
            first.commit()
    if stream is not None:
        stream.close()
    committed = CRASH_POINTS.index(point) >= COMMITTED_FROM
    assert bench.stored() == ([0, 1, 2] if committed else [])
    assert bench.stream.missing(entries) == set(), "nothing was deleted yet"

    drain(bench.writer())
    bench.assert_stored(*outcomes)
    bench.assert_no_garbage()


@pytest.mark.usefixtures("never_commit")
def test_a_writer_that_dies_before_it_commits_loses_nothing(bench: Bench) -> None:
    """What a dead writer had read is read again by the next."""
    bench.publish(make_record(0))
    abandoned = bench.writer()
    abandoned.step()
    bench.publish(make_record(1))
    drain(bench.writer())
    bench.assert_stored(make_record(0), make_record(1))


def test_chunks_of_two_attempts_never_mix(bench: Bench) -> None:
    """The chunks of two attempts that together would be complete are no record; one whole attempt is, and clears the others."""
    one, other = make_long_record(3, seed=1), make_long_record(3, seed=2)
    frames = {name: make_frames(record, bench.manifest.uid, name) for name, record in [(b"attempt1", one), (b"attempt2", other)]}
    for data in (frames[b"attempt1"][0], frames[b"attempt1"][2], frames[b"attempt2"][1]):
        bench.stream.publish(data)
    writer = bench.writer()
    drain(writer)
    assert bench.stored() == []
    assert bench.stream.length() == 3
    for data in (frames[b"attempt2"][2], frames[b"attempt2"][0]):
        bench.stream.publish(data)
    drain(writer)
    bench.assert_stored(other)


def test_the_first_complete_attempt_wins(bench: Bench) -> None:
    """Of two whole attempts the one that was complete first is stored; the other is deleted, before and after the commit."""
    first, second, third = (make_record(3, seed=seed) for seed in (1, 2, 3))
    bench.publish(first)
    bench.publish(second)
    writer = bench.writer()
    drain(writer)
    bench.publish(third)
    drain(writer)
    bench.assert_stored(first)


def test_a_frame_sent_twice_counts_once(bench: Bench) -> None:
    """An actor that repeats a command after a lost answer leaves no double and no remainder."""
    record = make_long_record(0)
    for data in make_frames(record, bench.manifest.uid):
        bench.stream.publish(data)
        bench.stream.publish(data)
    drain(bench.writer())
    bench.assert_stored(record)


def test_entries_that_come_back_are_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of stored prompts that reappear, as after a server's restore, are deleted and not stored again."""
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", 0.0)
    record = make_record(0)
    frames = make_frames(record, bench.manifest.uid)
    for data in frames:
        bench.stream.publish(data)
    writer = bench.writer()
    drain(writer)
    for data in frames:
        bench.stream.publish(data)
    drain(writer)
    bench.assert_stored(record)
    for data in frames:
        bench.stream.publish(data)
    drain(bench.writer())
    bench.assert_stored(record)


def test_an_idle_writer_reads_from_the_start_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries with ids below the cursor, as a server with a slower clock gives them, are found when nothing else comes."""
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", 0.0)
    writer = bench.writer()
    bench.publish(make_record(0))
    drain(writer)
    bench.stream.drop()  # a new stream may begin with any id
    with connect(bench.server.url) as client:
        for number, data in enumerate(make_frames(make_record(1), bench.manifest.uid), start=1):
            client.execute_command("XADD", f"raylens:{{{bench.manifest.uid}}}:frames", f"{number}-1", "f", data)
    wait_until(lambda: writer.step() or 1 in bench.stored(), "the entries below the cursor are stored")
    drain(writer)
    assert bench.stored() == [0, 1]
    assert bench.stream.length() == 0


def test_a_trickle_of_entries_does_not_hide_those_that_come_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer reads from the start again by the time since it last did, and not only once nothing has come for as long."""
    monkeypatch.setattr(writer_module, "time", clock := Clock())
    writer = bench.writer()
    bench.publish(make_record(0))
    drain(writer)
    bench.stream.drop()
    with connect(bench.server.url) as client:
        for number, data in enumerate(make_frames(make_record(1), bench.manifest.uid), start=1):
            client.execute_command("XADD", f"raylens:{{{bench.manifest.uid}}}:frames", f"{number}-1", "f", data)
    for index in (2, 3, 4):
        clock.now += 0.6 * writer_module.REWIND_SECONDS
        bench.publish(make_record(index))
        drain(writer)
    assert bench.stored() == [0, 1, 2, 3, 4]
    assert bench.stream.length() == 0


@pytest.mark.usefixtures("never_commit")
def test_a_fenced_writer_stops_and_has_deleted_nothing(bench: Bench) -> None:
    """A writer that lost the run gets Fenced at its next commit; what it had read is still there for its successor."""
    outcomes = [make_record(index) for index in range(3)]
    entries = [entry for outcome in outcomes for entry in bench.publish(outcome)]
    old = bench.writer()
    old.step()
    new = bench.writer()
    with pytest.raises(Fenced, match="another writer took over"):
        old.commit()
    assert bench.stored() == []
    assert bench.stream.missing(entries) == set()
    drain(new)
    bench.assert_stored(*outcomes)


@pytest.mark.usefixtures("never_commit")
def test_what_a_fenced_writer_deletes_is_in_the_ledger(bench: Bench) -> None:
    """A writer that does not know yet that it is fenced still deletes only entries of stored prompts and refused ones."""
    bench.publish(make_record(0))
    old = bench.writer()
    drain(old)
    new = bench.writer()
    repeated = bench.publish(make_record(0))
    poison = bench.stream.publish(b"poison")
    fresh = bench.publish(make_record(1))
    old.step()
    assert bench.stream.missing([*repeated, poison, *fresh]) == {*repeated, poison}
    assert [one.entry for one in Store(bench.store)["demo"].quarantine()] == [poison]
    drain(new)
    bench.assert_stored(make_record(0), make_record(1))


@pytest.mark.usefixtures("never_commit")
def test_a_writer_whose_run_was_moved_away_writes_nothing_into_the_new_one(bench: Bench) -> None:
    """On another machine no lock holds ``run --fresh`` back; the old run's writer then stops before it commits."""
    bench.publish(make_record(0))
    writer = bench.writer()
    writer.step()
    bench.folder.move_aside()
    make_run(bench.store, prompts=PROMPTS)
    with pytest.raises(Fenced, match="moved by run --fresh"):
        writer.commit()
    assert Ledger(bench.folder).refresh() == []
    assert list(bench.folder.records.iterdir()) == []


def test_a_writer_whose_run_was_moved_away_takes_nothing_of_the_new_one_for_garbage(bench: Bench) -> None:
    """Also where it has nothing to commit when it is told to end."""
    made = []

    def begun_anew() -> bool:
        bench.folder.move_aside()
        make_run(bench.store, prompts=PROMPTS)
        made.append(bench.folder.records / "000000000-0a1b2c3d.jsonl.zst")
        made[0].touch()  # of its writer, which is about to commit it
        return True

    with pytest.raises(Fenced, match="moved by run --fresh"):
        Writer(bench.folder, bench.stream).run(begun_anew)
    assert list(bench.folder.records.iterdir()) == made


def test_a_take_over_removes_files_that_were_never_whole(bench: Bench) -> None:
    """Temporary files of commits that can no longer be made go; one that a newer writer may be about to link stays."""
    for n in (0, 7):
        (bench.folder.commits / f".{n:09d}.json.0a1b2c3d.tmp").write_text("{")
    bench.writer()
    assert [path.name for path in bench.folder.commits.glob(".*")] == [".000000007.json.0a1b2c3d.tmp"]


def test_a_take_over_leaves_a_newer_writers_segment_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is overtaken before it cleans up does not remove the segment that its successor is about to commit."""
    bench.publish(make_record(0))
    first = Writer(bench.folder, bench.open_stream(bench.server.url, bench.manifest.uid))
    first_took_over, segment_written = threading.Event(), threading.Event()
    link = os.link

    def interleaved_link(source: Path, target: Path) -> None:
        if threading.current_thread() is thread:
            link(source, target)
            first_took_over.set()
            assert segment_written.wait(30)  # and only then go on to clean up
        elif target == bench.folder.commits / "000000002.json":
            segment_written.set()
            thread.join(30)
            link(source, target)
        else:
            link(source, target)

    monkeypatch.setattr(os, "link", interleaved_link)
    thread = threading.Thread(target=first.take_over)
    thread.start()
    assert first_took_over.wait(30)
    drain(bench.writer())
    assert not thread.is_alive()
    bench.assert_stored(make_record(0))


def test_what_a_repair_elsewhere_has_named_stays(bench: Bench) -> None:
    """Locks hold on one machine only: a writer removes what no commit names in the end, not what it has not heard of."""
    bench.publish(make_record(0))
    drain(bench.writer())
    ledger = Ledger(bench.folder)
    commit = ledger.refresh()[-1]
    assert commit.segment is not None
    repaired = commit.segment.replace(commit.writer, "fedcba98")
    writer = bench.writer()

    def repair() -> bool:
        for folder in (bench.folder.records, bench.folder.tables):
            for path in folder.glob(f"*{commit.writer}*"):
                path.rename(path.with_name(path.name.replace(commit.writer, "fedcba98")))
        found = msgspec.structs.replace(commit, writer="fedcba98", segment=repaired)
        ledger.path(commit.n).write_bytes(msgspec.json.encode(found))
        (bench.folder.records / repaired.replace("fedcba98", "00000000")).write_bytes(b"of a helper that was fenced")
        return True

    writer.run(stopping=repair)
    bench.assert_stored(make_record(0))
    assert [path.name for path in bench.folder.records.iterdir()] == [repaired]


def test_writers_that_take_over_at_once_end_as_one(bench: Bench) -> None:
    """Of several writers that take over at the same time all have a number of their own, and only the last can commit."""
    barrier = threading.Barrier(4)
    writers = [Writer(bench.folder, bench.open_stream(bench.server.url, bench.manifest.uid)) for _ in range(4)]

    def take_over(writer: Writer) -> None:
        barrier.wait()
        writer.take_over()

    threads = [threading.Thread(target=take_over, args=[writer]) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commits = Ledger(bench.folder).refresh()
    assert [commit.n for commit in commits] == [0, 1, 2, 3]
    assert len({commit.writer for commit in commits}) == 4
    bench.publish(make_record(0))
    for writer in writers:
        with suppress(Fenced):
            drain(writer)
    bench.assert_stored(make_record(0))
    stored = [commit for commit in Ledger(bench.folder).refresh() if commit.entries]
    assert [commit.writer for commit in stored] == [commits[-1].writer]


def test_poison_goes_to_quarantine_and_is_deleted(bench: Bench) -> None:
    """Entries that are not valid are kept aside with the reason, also those of several frames, and the rest is stored."""
    uid = bench.manifest.uid
    refused = [bench.stream.publish(data) for data in (b"", b"noise", make_frames(make_record(0), "another run")[0])]
    refused += bench.publish(make_record(PROMPTS))
    wrong = make_long_record(1)
    wrong.taps["resid_post"].logprobs[0, 0, 0] = float("nan")
    refused += bench.publish(wrong)
    with connect(bench.server.url) as client:
        raw = client.execute_command("XADD", f"raylens:{{{uid}}}:frames", "*", "other field", "value")
        refused.append(raw.decode())
    bench.publish(make_record(1))
    drain(bench.writer())
    found = {one.entry: one.reason for one in Store(bench.store)["demo"].quarantine()}
    assert found.keys() == set(refused)
    assert found[refused[2]] == "frame of another run"
    assert found[refused[3]] == f"prompt index {PROMPTS} is outside the corpus"
    assert found[refused[4]] == found[refused[6]] == "logprobs are not sorted finite numbers at or below 0"
    bench.assert_stored(make_record(1))


@pytest.mark.parametrize("depth", [0, 400])
def test_what_json_cannot_hold_is_refused_and_stops_nothing(bench: Bench, depth: int) -> None:
    """Metadata with an integer over 64 bits, or nested without end, does not kill the writer that would store it."""
    value: Any = 1 << 70
    for _ in range(depth):
        value = [value]
    entries = bench.publish(make_record(0, metadata={"n": value})) + bench.publish(make_failure(1, metadata={"n": value}))
    bench.publish(make_record(2))
    drain(bench.writer())
    found = Store(bench.store)["demo"].quarantine()
    assert {one.entry for one in found} == set(entries)
    assert all("cannot be stored as JSON" in one.reason for one in found)
    bench.assert_stored(make_record(2))


def test_what_is_held_is_counted_once() -> None:
    """An entry that is read again takes no more room, nor does a chunk that was sent twice; what is complete takes none."""
    gathering = Gathering()
    one, two, three = (decode_frame(data, "run", PROMPTS) for data in make_frames(make_long_record(0), "run", b"attempt1"))
    other = decode_frame(make_frames(make_long_record(1), "run", b"attempt2")[0], "run", PROMPTS)
    for entry in ("1-0", "1-0", "2-0", "1-0"):
        gathering.add(entry, one)
    assert gathering.size == len(one.body) + 2 * ENTRY_BYTES
    gathering.add("3-0", other)
    gathering.add("4-0", three)
    assert gathering.add("5-0", two) == (one.body + two.body + three.body, {"1-0", "2-0", "4-0", "5-0"})
    assert gathering.size == len(other.body) + ENTRY_BYTES
    assert gathering.drop_oldest() == [("3-0", 1, other.body)]
    assert gathering.size == 0


def test_attempts_that_do_not_fit_together_are_completed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are sent side by side: each time all is read again the oldest of those that are left is completed."""
    attempts = [make_frames(make_long_record(index), "run", b"%08d" % index) for index in range(8)]
    size = sum(len(decode_frame(data, "run", PROMPTS).body) for data in attempts[0])
    monkeypatch.setattr(gathering_module, "MAX_BYTES", 2 * size)
    gathering, left = Gathering(), set(range(8))
    stream = [(f"{chunk}-{index}", index, attempts[index][chunk]) for chunk in range(3) for index in range(8)]
    for _ in range(8):
        for entry, index, data in stream:
            if index in left and gathering.add(entry, decode_frame(data, "run", PROMPTS)) is not None:
                left.remove(index)
        assert gathering.size <= 2 * size + len(attempts[0][0])
    assert left == set()


def test_attempts_without_an_end_do_not_keep_others_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they take all the memory there is for such, the oldest is refused, also of a server without a limit."""
    dead = make_frames(make_long_record(0), bench.manifest.uid)[:2]
    size = sum(len(decode_frame(data, bench.manifest.uid, PROMPTS).body) for data in dead)
    monkeypatch.setattr(gathering_module, "MAX_BYTES", size + 2 * ENTRY_BYTES)
    monkeypatch.setattr(writer_module, "STANDSTILL_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", 0.0)
    for data in dead:
        bench.stream.publish(data)
    bench.publish(make_long_record(1))
    writer = bench.writer()
    wait_until(lambda: not writer.step() and bench.stored() == [1], "the other is stored")
    writer.commit()
    refused = Quarantine(bench.folder).entries()
    assert {one.index for one in refused} == {0}
    assert all("others like it had taken all the memory" in one.reason for one in refused)


def test_an_attempt_that_changes_its_chunk_count_is_refused(bench: Bench) -> None:
    """A frame that contradicts its attempt is refused, and another attempt is stored."""
    record = make_long_record(0)
    three = make_frames(record, bench.manifest.uid, b"attempt1")
    bench.stream.publish(three[0])
    odd = bench.publish(make_record(0), b"attempt1")
    writer = bench.writer()
    drain(writer)
    assert [(one.entry, one.reason, one.index) for one in Store(bench.store)["demo"].quarantine()] == [
        (odd[0], "chunk count 1, the same attempt said 3", 0)
    ]
    bench.publish(record)
    drain(writer)
    bench.assert_stored(record)


def test_a_writer_told_to_stop_commits_what_is_complete(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its input lets a writer read what is there, commit it and return."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)
    for index in range(PROMPTS - 1):
        bench.publish(make_record(index))
    Writer(bench.folder, bench.open_stream(bench.server.url, bench.manifest.uid)).run(stopping=lambda: True)
    bench.assert_stored(*(make_record(index) for index in range(PROMPTS - 1)))


def test_an_entry_that_cannot_be_deleted_is_refused_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is read again while the server takes no deletions."""
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", 0.0)

    def refuse(*_: object) -> None:
        raise BrokerError("away")

    poison = bench.stream.publish(b"poison")
    writer = bench.writer()
    with monkeypatch.context() as away:
        away.setattr(Stream, "delete", refuse)
        for _ in range(4):
            writer.step()
    assert [one.entry for one in Quarantine(bench.folder).entries()] == [poison]
    writer.step()
    assert bench.stream.length() == 0


def test_a_writer_that_ends_leaves_its_successors_file(bench: Bench) -> None:
    """One is about to take over: what it is writing under the next number is not garbage."""
    taking = bench.folder.commits / ".000000001.json.0a1b2c3d.tmp"
    writer = Writer(bench.folder, bench.open_stream(bench.server.url, bench.manifest.uid))
    writer.run(stopping=lambda: taking.write_text("{") > 0)
    assert taking.exists()


class NeverEmpty(Stream):
    """A stream to which an actor adds something each time that the writer has read from it."""

    def read(self, after: str, block_ms: int) -> list[tuple[str, bytes]]:
        entries = super().read(after, block_ms)
        self.publish(b"more")
        return entries


def test_a_writer_told_to_stop_leaves_what_comes_later(bench: Bench) -> None:
    """Actors that go on, on a server that others keep, do not hold a writer back from ending."""
    bench.publish(make_record(0))
    stream = NeverEmpty(bench.server.url, bench.manifest.uid)
    Writer(bench.folder, stream).run(stopping=lambda: True)
    stream.close()
    assert bench.stored() == [0]
    assert bench.stream.length() == 1


def test_the_last_prompts_are_committed_without_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once everything that is not stored has come there is nothing to wait for."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)
    outcomes = [make_record(index) for index in range(PROMPTS)]
    bench.publish(outcomes[0])
    writer = bench.writer()
    drain(writer)
    for outcome in outcomes[1:-1]:
        bench.publish(outcome)
    writer.step()
    assert bench.stored() == [0]
    bench.publish(outcomes[-1])
    writer.step()
    bench.assert_stored(*outcomes)


def test_a_full_segment_is_committed_without_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes over the limit are committed at once, however long a commit may wait."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)
    monkeypatch.setattr(building_module, "COMMIT_BYTES", 1)
    bench.publish(make_record(0))
    bench.writer().step()
    bench.assert_stored(make_record(0))


def test_payloads_fill_a_segment_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is counted over all that came, read by read."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)
    monkeypatch.setattr(building_module, "COMMIT_BYTES", sum(len(encode_payload(make_record(index))) for index in range(2)))
    writer = bench.writer()
    bench.publish(make_record(0))
    writer.step()
    assert bench.stored() == []
    bench.publish(make_record(1))
    writer.step()
    bench.assert_stored(make_record(0), make_record(1))


def test_records_that_come_now_and_then_do_not_put_a_commit_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is due when the first that waits has waited, however lately another came."""
    clock = Clock()
    monkeypatch.setattr(writer_module, "time", clock)
    monkeypatch.setattr(building_module, "time", clock)
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 2.0)
    writer = bench.writer()
    for index in range(2):
        bench.publish(make_record(index))
        writer.step()
        clock.now += 1.5
    assert bench.stored() == []
    writer.step()
    bench.assert_stored(make_record(0), make_record(1))


# ---- servers that die


def kill(server: EmbeddedServer) -> None:
    """SIGKILL the server's own process, and wait until it is gone."""
    with connect(server.url) as client:
        pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not answers(server.url), "the killed server is gone")


@pytest.mark.usefixtures("never_commit")
def test_a_server_restarted_empty_costs_only_a_repetition(own_bench: Bench) -> None:
    """What a lost server held is sent again; what was read or stored before is neither lost nor doubled."""
    stored, read, lost = make_record(0), make_record(1), make_record(2)
    writer = own_bench.writer()
    own_bench.publish(stored)
    drain(writer)
    own_bench.publish(read)
    writer.step()
    own_bench.publish(lost)
    own_bench.server.restart()
    own_bench.stream.create()
    assert own_bench.stream.length() == 0
    drain(writer)
    assert own_bench.stored() == [0, 1]
    for record in (stored, read, lost):  # the driver's receipts are gone, so it sends again
        own_bench.publish(record)
    drain(writer)
    own_bench.assert_stored(stored, read, lost)


@pytest.mark.usefixtures("never_commit")
def test_a_killed_server_stops_no_writer(own_bench: Bench, open_stream: Callable[..., Stream]) -> None:
    """While the server is away a writer waits, commits what it has, and goes on when the server is back."""
    stream = open_stream(own_bench.server.url, own_bench.manifest.uid, 0)
    writer = own_bench.writer(stream)
    entries = own_bench.publish(make_record(0))
    writer.step()
    kill(own_bench.server)
    with pytest.raises(BrokerError):
        stream.publish(b"frame")
    assert not writer.step()
    writer.commit()
    assert own_bench.stored() == [0], "the ledger needs no server"
    assert not writer.step()
    own_bench.server.restart()
    own_bench.stream.create()
    own_bench.publish(make_record(1))
    assert own_bench.stream.missing(entries) == set(entries)
    drain(writer)
    own_bench.assert_stored(make_record(0), make_record(1))


def test_an_actor_waits_for_a_server_that_is_away(own_bench: Bench) -> None:
    """An outcome published while the server is dead arrives once it is back."""
    kill(own_bench.server)
    stream = own_bench.open_stream(own_bench.server.url, own_bench.manifest.uid, 30)
    receipts: list[Any] = []
    actor = threading.Thread(target=lambda: receipts.append(publish(stream, own_bench.manifest.uid, make_record(0))))
    actor.start()
    own_bench.server.restart()
    own_bench.stream.create()
    actor.join(timeout=HUNG)
    assert len(receipts) == 1
    drain(own_bench.writer())
    own_bench.assert_stored(make_record(0))


def fill(stream: Stream, run: str) -> int:
    """Publish large records until the server refuses; how many it took whole."""
    for taken in range(1000):
        try:
            publish(stream, run, make_large_record(taken))
        except BrokerError as error:
            reason = str(error)
            break
    assert "maxmemory" in reason
    return taken


@pytest.mark.usefixtures("real_frames")
def test_a_full_server_makes_actors_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_stream: Callable[..., Stream]
) -> None:
    """When memory is used up an actor's publish waits, the writer makes room, and nothing is dropped."""
    monkeypatch.setattr(server_module, "MAX_MEMORY", "5mb")
    with EmbeddedServer() as small:
        bench = Bench.on(small, tmp_path, open_stream, PROMPTS)
        impatient = open_stream(small.url, bench.manifest.uid, 0)
        filled = fill(impatient, bench.manifest.uid)
        assert 0 < filled < LARGE
        assert bench.stream.length() >= 3 * filled, "a full server drops nothing"

        patient = open_stream(small.url, bench.manifest.uid, 30)
        sent: list[int] = []

        def actor() -> None:
            for index in range(filled, LARGE):
                sent.append(publish(patient, bench.manifest.uid, make_large_record(index)).index)

        thread = threading.Thread(target=actor)
        thread.start()
        writer = bench.writer()
        wait_until(lambda: not writer.step() and not thread.is_alive(), "everything is sent")
        thread.join()
        assert sent == list(range(filled, LARGE))
        drain(writer)
        bench.assert_stored(*(make_large_record(index) for index in range(LARGE)))


@pytest.mark.usefixtures("real_frames")
def test_incomplete_attempts_do_not_fill_a_server_for_good(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_stream: Callable[..., Stream]
) -> None:
    """Where attempts of which nothing more comes leave no room for any other, they are refused with the reason."""
    monkeypatch.setattr(server_module, "MAX_MEMORY", "8mb")
    monkeypatch.setattr(writer_module, "STANDSTILL_SECONDS", 0.5)
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", 0.1)  # what is only read again is nothing new
    with EmbeddedServer() as small:
        bench = Bench.on(small, tmp_path, open_stream, PROMPTS)
        for index in range(2):  # as by actors that died in the middle
            for data in make_frames(make_large_record(index), bench.manifest.uid)[:2]:
                bench.stream.publish(data)
        sent: list[int] = []

        def actor() -> None:
            sent.extend(publish(bench.stream, bench.manifest.uid, make_large_record(2), patient=True).entries)

        thread = threading.Thread(target=actor)
        thread.start()
        writer = bench.writer()
        wait_until(lambda: not writer.step() and not thread.is_alive(), "it is sent")
        thread.join()
        drain(writer)
        assert bench.stored() == [2]
        refused = Quarantine(bench.folder).entries()
        assert {entry.index for entry in refused} <= {0, 1}
        assert len(refused) in {2, 4}, "whole attempts, and no more than needed"
        assert all("give it more than a maxmemory of 8388608 bytes" in entry.reason and entry.size > 500_000 for entry in refused)
        bench.stream.drop()


@pytest.mark.usefixtures("real_frames")
def test_a_server_that_others_fill_costs_nothing(tmp_path: Path, open_stream: Callable[..., Stream]) -> None:
    """An incomplete attempt waits for the rest of it while another run's results leave it no room."""
    with RealServer("valkey9", "--maxmemory", "20mb", "--maxmemory-policy", "noeviction") as shared:
        bench = Bench.on(shared, tmp_path, open_stream, PROMPTS)
        first, *rest = make_frames(make_large_record(0), bench.manifest.uid)
        bench.stream.publish(first)
        with connect(shared.url) as other, pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer_module, "STANDSTILL_SECONDS", 0.0)
            while not bench.stream.memory().full:
                other.rpush("ballast", bytes(1 << 20))
            writer = bench.writer()
            for _ in range(5):
                writer.step()
            other.delete("ballast")
        for data in rest:
            bench.stream.publish(data)
        drain(writer)
        bench.assert_stored(make_large_record(0))
        assert Quarantine(bench.folder).entries() == []


def test_a_fenced_writer_process_ends_with_its_exit_code(bench: Bench) -> None:
    """The process that lost its run to another writer says so and exits 6."""
    command = [sys.executable, "-P", "-m", "raylens.storage.writer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(msgspec.json.encode(Orders(str(bench.folder.root), bench.server.url)) + b"\n")
        process.stdin.flush()
        wait_until(lambda: len(list(bench.folder.commits.glob("*.json"))) == 1, "the writer owns the run")
        (bench.folder.commits / "000000001.json").write_bytes(b"a rival's")
        bench.publish(make_record(0))
        assert process.wait(timeout=HUNG) == 6
        assert b"another writer took over" in process.stderr.read()
