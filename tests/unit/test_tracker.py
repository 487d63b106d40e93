"""The tracker with a real ledger, a real stream and a real writer: every prompt ends in the ledger once, whatever dies."""

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from raylens.scheduler import tracker as tracker_module
from raylens.scheduler.shards import Shard, estimated_positions
from raylens.scheduler.tracker import DEATHS_BEFORE_ALONE, DEATHS_BEFORE_FAILURE, MAX_VANISHED, OPEN_BYTES, Tracker, open_bytes
from raylens.storage import writer as writer_module
from raylens.storage.errors import BrokerError, ServerFull, StoreError, StreamGone
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.manifest import Manifest
from raylens.storage.record import Failure, Prompt
from raylens.storage.server import EmbeddedServer
from raylens.storage.store import Store
from raylens.storage.stream import Stream, connect
from raylens.storage.writer import Writer
from raylens.workers.publish import Receipt, publish
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from tests.builders import make_frames, make_prompt, make_record, make_run
from tests.servers import RealServer
from tests.waiting import wait_until

PROMPTS = 6


class Rig:
    """One run: its folder, stream, writer and tracker."""

    def __init__(self, store: Path, url: str, prompts: int = PROMPTS, size: int = 2, stream: Stream | None = None) -> None:
        self.store = store
        self.folder: RunFolder
        self.manifest: Manifest
        self.folder, self.manifest = make_run(store, prompts=prompts)
        self.url = url
        self.stream = Stream(url, self.manifest.uid, 2)
        self.stream.create()
        self.asked = stream or self.stream
        self.gave_up: list[Failure] = []
        self.broken = False
        self.ledger = Ledger(self.folder)
        self.tracker = Tracker(self._fresh(prompts, size), prompts, self.ledger, self.asked, self._give_up, lambda _: 1)
        self.new_writer()

    def _fresh(self, prompts: int, size: int) -> Iterator[Shard]:
        for start in range(0, prompts, size):
            yield Shard([make_prompt(index) for index in range(start, min(start + size, prompts))])

    def _give_up(self, failure: Failure) -> Receipt:
        if self.broken:
            raise BrokerError("away")
        self.gave_up.append(failure)
        return publish(self.stream, self.manifest.uid, failure)

    def check(self) -> list[Commit]:
        """What a run does now and then: check receipts, and publish failures."""
        commits = self.tracker.check_receipts()
        self.tracker.publish_failures()
        return commits

    def new_writer(self) -> None:
        """A writer that takes the run over from whichever there was."""
        self.writer = Writer(self.folder, self.stream)
        self.writer.take_over()

    def publish(self, prompt: Prompt) -> Receipt:
        """An actor's result for one prompt."""
        return publish(self.stream, self.manifest.uid, make_record(prompt.index))

    def wipe(self) -> None:
        """The server loses all it holds; the stream is made again as by a driver."""
        self.stream.drop()
        self.stream.create()

    def produce(self, shard: Shard) -> list[Receipt]:
        """An actor's answer for a shard, told to the tracker."""
        receipts = [self.publish(prompt) for prompt in shard.prompts]
        self.tracker.produced(receipts)
        return receipts

    def commit(self) -> None:
        """The writer stores what is in the stream."""
        while self.writer.step():
            pass
        self.writer.commit()

    def take(self) -> Shard:
        """The next shard, which must exist."""
        shard = self.tracker.next_shard()
        assert shard is not None
        return shard

    def indexes(self, shard: Shard | None) -> list[int]:
        return [] if shard is None else [prompt.index for prompt in shard.prompts]

    def finish(self) -> None:
        """Work without faults until the tracker is done; fail if that does not come."""
        for _ in range(20 * PROMPTS):
            while (shard := self.tracker.next_shard()) is not None:
                self.produce(shard)
            self.commit()
            self.check()
            self.tracker.follow()
            if self.tracker.done:
                return
        raise AssertionError("never done")

    def assert_stored(self, prompts: int = PROMPTS) -> None:
        """Every prompt is in the ledger exactly once."""
        entries = [entry.index for commit in Ledger(self.folder).refresh() for entry in commit.entries]
        assert sorted(entries) == list(range(prompts))

    def close(self) -> None:
        self.stream.drop()
        self.stream.close()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receipts are checked at each call, and the writer waits for nothing."""
    set_fast(monkeypatch)


def set_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "RECEIPT_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)


@pytest.fixture
def rig(server: EmbeddedServer, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, server.url)
    yield rig
    rig.close()


def test_a_run_without_faults(rig: Rig) -> None:
    """Shards come once each, in order; the tracker is done when the ledger holds all of them, and not before."""
    shards = [rig.take() for _ in range(3)]
    assert [rig.indexes(shard) for shard in shards] == [[0, 1], [2, 3], [4, 5]]
    assert rig.tracker.next_shard() is None
    for shard in shards:
        rig.produce(shard)
    rig.tracker.follow()
    rig.check()
    assert not rig.tracker.done, "produced is not stored"
    rig.commit()
    assert not rig.tracker.done, "not before the ledger was read"
    commits = rig.tracker.follow()
    assert sum(len(commit.entries) for commit in commits) == PROMPTS
    assert rig.tracker.done
    rig.assert_stored()


def test_done_waits_for_the_whole_corpus(rig: Rig) -> None:
    """With nothing open, a tracker whose corpus is not used up is not done."""
    rig.produce(rig.take())
    rig.commit()
    rig.tracker.follow()
    assert not rig.tracker.done
    rig.finish()
    rig.assert_stored()


def test_a_lost_shard_is_handed_out_again_as_it_was(rig: Rig) -> None:
    """A shard that had not begun, or whose actor died for the first time, is retried together."""
    shard = rig.take()
    rig.tracker.lost(shard, blame=False)
    assert rig.take() == shard
    rig.tracker.lost(shard, blame=True)
    assert rig.take() == shard
    assert not shard.alone


def test_prompts_whose_actor_dies_again_are_tried_alone(rig: Rig) -> None:
    """After two deaths each prompt of the shard is tried alone; deaths that were not theirs do not count."""
    shard = rig.take()
    for _ in range(10):
        rig.tracker.lost(shard, blame=False)
        assert rig.take() == shard
    for _ in range(DEATHS_BEFORE_ALONE):
        rig.tracker.lost(shard, blame=True)
        retried = [rig.take()]
        if len(retried[0].prompts) == 1:
            retried.append(rig.take())
    assert retried == [Shard([prompt], alone=True) for prompt in shard.prompts]


def test_a_prompt_that_kills_its_actors_becomes_a_failure(rig: Rig) -> None:
    """After four deaths, the last of them alone, the prompt is stored as a failure; its neighbour is stored as a record."""
    shard = rig.take()
    for _ in range(DEATHS_BEFORE_ALONE):
        rig.tracker.lost(shard, blame=True)
        suspects = [rig.take() for _ in range(2)] if _ + 1 == DEATHS_BEFORE_ALONE else [rig.take()]
    culprit, innocent = suspects
    rig.produce(innocent)
    for death in range(DEATHS_BEFORE_ALONE + 1, DEATHS_BEFORE_FAILURE + 1):
        assert rig.gave_up == [], f"not given up before death {death}"
        rig.tracker.lost(culprit, blame=True)
        if death < DEATHS_BEFORE_FAILURE:
            assert rig.take() == culprit
        rig.check()
    assert [(failure.index, failure.kind) for failure in rig.gave_up] == [(0, "crash")]
    assert "died 4 times" in rig.gave_up[0].message
    rig.finish()
    rig.assert_stored()
    run = Store(rig.store)["demo"]
    assert run.counts()["failures"] == {"crash": 1}
    assert [failure.id for failure in run.failures()] == ["prompt-0"]


def test_a_failure_of_a_crash_keeps_the_metadata(rig: Rig) -> None:
    """By which a user finds the prompt; its results were never refused."""
    shard = Shard([msgspec.structs.replace(make_prompt(0), metadata={"split": "test"})])
    rig.tracker = Tracker(iter([shard]), PROMPTS, rig.ledger, rig.stream, rig._give_up, lambda _: 1)
    assert rig.take() == shard
    for _ in range(DEATHS_BEFORE_FAILURE):
        rig.tracker.lost(shard, blame=True)
    rig.check()
    assert [(failure.kind, failure.metadata) for failure in rig.gave_up] == [("crash", {"split": "test"})]


def test_a_failure_that_cannot_be_published_waits(rig: Rig) -> None:
    """While the server is away a failure is kept, and published once it is back; the other prompts of the shard go on."""
    shard = rig.take()
    culprit, other = Shard(shard.prompts[:1]), Shard(shard.prompts[1:])
    for _ in range(DEATHS_BEFORE_FAILURE - 1):
        rig.tracker.lost(culprit, blame=True)
        assert rig.indexes(rig.take()) == [0]
    rig.broken = True
    rig.tracker.lost(shard, blame=True)
    assert rig.take() == other
    for _ in range(3):
        with pytest.raises(BrokerError, match="away"):
            rig.check()
    assert rig.gave_up == []
    rig.broken = False
    rig.produce(other)
    rig.finish()
    assert [failure.index for failure in rig.gave_up] == [0]
    rig.assert_stored()


def test_vanished_receipts_are_sent_again(rig: Rig) -> None:
    """Results that are neither in the stream nor in the ledger are computed again; those that are there are not."""
    first, second = rig.take(), rig.take()
    rig.produce(first)
    rig.check()
    assert rig.tracker.next_shard() is not None, "the third shard, and nothing of the first"
    rig.wipe()
    now = time.time()
    # an emptied server may give the same id again within a millisecond; in a run the next check tells
    wait_until(lambda: time.time() > now + 0.002, "the server's clock has moved on")
    rig.produce(second)
    rig.check()
    assert rig.tracker.vanished == 2
    again = rig.take()
    assert rig.indexes(again) == [0, 1], "together, as they were"
    assert rig.tracker.next_shard() is None
    for shard in [again, Shard([make_prompt(4), make_prompt(5)])]:
        rig.produce(shard)
    rig.finish()
    rig.assert_stored()


def test_what_an_earlier_driver_left_can_finish_a_run(rig: Rig) -> None:
    """Nothing is asked of an actor, and none is waited for."""
    for index in range(PROMPTS):
        rig.publish(make_prompt(index))
    assert not rig.tracker.done
    rig.commit()
    rig.tracker.follow()
    assert rig.tracker.done


def test_an_actor_waits_with_its_result_until_the_lost_stream_is_made_again(
    rig: Rig, open_stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an actor adds makes no stream; the driver's next check does, and what was added then counts."""
    monkeypatch.setattr(tracker_module, "RECEIPT_SECONDS", 0.0)
    shard = rig.take()
    rig.stream.drop()
    with pytest.raises(StreamGone, match="is gone; has its run ended"):
        rig.publish(shard.prompts[0])
    actors = open_stream(rig.url, rig.manifest.uid, 30)
    with ThreadPoolExecutor(1) as pool:
        sent = [
            pool.submit(publish, actors, rig.manifest.uid, make_record(prompt.index), patient=True) for prompt in shard.prompts
        ]
        rig.check()
        rig.tracker.produced([one.result() for one in sent])
    rig.check()
    assert not rig.tracker.vanished
    rig.finish()
    rig.assert_stored()


def test_one_missing_frame_of_several_is_a_loss(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result of which a part has vanished is sent again."""
    monkeypatch.setattr("raylens.storage.frame.CHUNK_BYTES", 300)
    rig.take()
    (receipt,) = rig.produce(Shard([make_prompt(0)]))
    assert len(receipt.entries) > 2
    rig.stream.delete(receipt.entries[1:2])
    rig.check()
    assert rig.indexes(rig.tracker.next_shard()) == [0]
    rig.produce(Shard([make_prompt(0), make_prompt(1)]))
    rig.finish()
    rig.assert_stored()


def test_a_prompt_under_suspicion_stays_alone(rig: Rig) -> None:
    """A prompt that is tried alone is also alone when its results vanish."""
    shard = rig.take()
    for _ in range(DEATHS_BEFORE_ALONE):
        rig.tracker.lost(shard, blame=True)
    while rig.tracker.next_shard() is not None:
        pass
    rig.produce(Shard([make_prompt(0)]))
    rig.wipe()
    rig.check()
    assert rig.take() == Shard([make_prompt(0)], alone=True)


def test_results_that_always_vanish_become_a_failure(rig: Rig) -> None:
    """After eight losses a prompt is stored as a failure that holds nothing but its id, in case its contents are refused."""
    shard = rig.take()
    rig.produce(Shard(shard.prompts[1:]))
    rig.commit()
    rig.tracker.follow()
    for loss in range(MAX_VANISHED):
        assert rig.gave_up == [], f"not given up before loss {loss}"
        rig.produce(Shard(shard.prompts[:1]))
        rig.wipe()
        rig.check()
        rig.check()
    assert [(failure.index, failure.kind, failure.metadata) for failure in rig.gave_up] == [(0, "delivery", {})]
    rig.finish()
    rig.assert_stored()
    assert Store(rig.store)["demo"].counts()["failures"] == {"delivery": 1}


def test_a_failure_of_delivery_leaves_the_metadata_out(rig: Rig) -> None:
    """It may be this that the writer refuses."""
    shard = Shard([msgspec.structs.replace(make_prompt(0), metadata={"split": "test"})])
    rig.tracker = Tracker(iter([shard]), PROMPTS, rig.ledger, rig.stream, rig._give_up, lambda _: 1)
    assert rig.take() == shard
    for _ in range(MAX_VANISHED):
        rig.produce(shard)
        rig.wipe()
        rig.check()
        rig.check()
    assert [(failure.kind, failure.metadata) for failure in rig.gave_up] == [("delivery", {})]


def test_when_even_failures_vanish_the_run_ends(rig: Rig) -> None:
    """A run whose every result vanishes stops with an error in place of trying for ever."""
    shard = rig.take()

    def lose_everything() -> None:
        for _ in range(10 * MAX_VANISHED):
            rig.produce(shard)
            rig.wipe()
            rig.check()
            rig.wipe()

    with pytest.raises(StoreError, match=r"results keep vanishing from the server before they are stored.* prompt 'prompt-[01]'"):
        lose_everything()


def test_a_lost_failure_is_published_again(rig: Rig) -> None:
    """A failure whose frames vanish is sent again as it is; its prompt does not get another actor to kill."""
    shard = rig.take()
    culprit = Shard(shard.prompts[:1], alone=True)
    rig.produce(Shard(shard.prompts[1:]))
    for _ in range(DEATHS_BEFORE_FAILURE):
        rig.tracker.lost(culprit, blame=True)
    while rig.tracker.next_shard() is not None:
        pass
    rig.check()
    rig.wipe()
    rig.check()
    rig.check()
    assert [failure.kind for failure in rig.gave_up] == ["crash", "crash"]
    assert rig.indexes(rig.tracker.next_shard()) == [1]
    rig.produce(Shard([make_prompt(index) for index in range(1, PROMPTS)]))
    rig.finish()
    rig.assert_stored()


class InterruptedStream(Stream):
    """A real stream that lets something else happen just before or just after it is asked for entries."""

    def __init__(self, url: str, run: str) -> None:
        super().__init__(url, run, 2)
        self.before: Callable[[], Any] = lambda: None
        self.after: Callable[[], Any] = lambda: None

    def missing(self, entry_ids: Any) -> set[str]:
        self.before()
        found = super().missing(entry_ids)
        self.after()
        return found


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_during_the_check_is_no_loss(server: EmbeddedServer, tmp_path: Path, when: str) -> None:
    """A commit just before the stream is asked, or between that and reading the ledger, is never taken for a loss."""
    rig = Rig(tmp_path, server.url)
    asked = InterruptedStream(server.url, rig.manifest.uid)
    tracker = Tracker(iter([Shard([make_prompt(0), make_prompt(1)])]), 2, rig.ledger, asked, rig._give_up, lambda _: 1)
    shard = tracker.next_shard()
    assert shard is not None
    receipts = [rig.publish(prompt) for prompt in shard.prompts]
    tracker.produced(receipts)
    setattr(asked, when, rig.commit)
    commits = tracker.check_receipts()
    assert rig.stream.missing(receipts[0].entries), "the writer has deleted the entries"
    assert [len(commit.entries) for commit in commits if commit.entries] == [2]
    assert tracker.next_shard() is None, "nothing is sent again"
    assert tracker.done
    asked.close()
    rig.close()


def test_receipts_found_in_the_stream_are_asked_for_less_often(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause before the next check of a receipt doubles, up to a limit, since its answer holds the frames."""
    seconds = 0
    monkeypatch.setattr(tracker_module, "time", SimpleNamespace(monotonic=lambda: float(seconds)))
    monkeypatch.setattr(tracker_module, "RECEIPT_SECONDS", 3.0)
    rig = Rig(tmp_path, server.url)
    asked = InterruptedStream(server.url, rig.manifest.uid)
    tracker = Tracker(iter([Shard([make_prompt(0)])]), PROMPTS, rig.ledger, asked, rig._give_up, lambda _: 1)
    checks: list[int] = []
    asked.before = lambda: checks.append(seconds)
    assert tracker.next_shard() is not None
    tracker.produced([rig.publish(make_prompt(0))])
    for seconds in range(120):  # noqa: B007  the clock
        tracker.check_receipts()
    pauses = [after - before for before, after in pairwise([0, *checks])]
    assert pauses[:4] == [3, 6, 12, 24]
    assert set(pauses[4:]) == {24}
    asked.close()
    rig.close()


def test_open_bytes_stop_submission(server: EmbeddedServer, tmp_path: Path) -> None:
    """No fresh shard is handed out that would take the open bytes over the limit, as receipts let expect; retries still are."""
    rig = Rig(tmp_path, server.url, size=1)
    first, second = rig.take(), rig.take()
    real = {shard.prompts[0].index: rig.publish(shard.prompts[0]) for shard in (first, second)}
    rig.tracker.produced([Receipt(0, real[0].entries, OPEN_BYTES // 2)])
    assert rig.tracker.next_shard() is None, "one like the first does not fit beside it and the second"
    assert not rig.tracker.done
    rig.tracker.produced([Receipt(1, real[1].entries, 16)])
    third = rig.take()
    assert OPEN_BYTES * 0.7 < rig.tracker.open_bytes < OPEN_BYTES * 0.8, "half, next to nothing, and what these are on average"
    assert rig.tracker.next_shard() is None
    rig.tracker.lost(third, blame=False)
    assert rig.take() == third, "what is open already may go on"
    assert rig.tracker.next_shard() is None
    rig.commit()
    rig.tracker.follow()
    assert rig.indexes(rig.tracker.next_shard()) == [3], "a commit makes room"
    rig.tracker.lost(Shard([make_prompt(2), make_prompt(3)]), blame=False)
    rig.finish()
    rig.assert_stored()
    rig.close()


@pytest.mark.parametrize(("positions", "together"), [("all", 1), ("last", 3), ("last:8", 3), ("-1", 3), ("16:32", 3)])
def test_estimates_of_open_bytes_follow_the_positions(
    server: EmbeddedServer, tmp_path: Path, positions: str, together: int
) -> None:
    """Where every position is lensed a long prompt takes its length in room before anything is known of it. Where few are, the
    prompts of other actors fit beside it, however long they are, and none of them idles."""
    rig = Rig(tmp_path, server.url)
    long = [Shard([Prompt(index, f"p{index}", token_ids=[0] * (OPEN_BYTES // 4096))]) for index in range(3)]
    expected = estimated_positions(WorkerSettings(ModelSettings("any"), LensSettings(positions=positions)))
    tracker = Tracker(iter(long), PROMPTS, rig.ledger, rig.stream, rig._give_up, expected)
    assert [tracker.next_shard() for _ in range(3)] == long[:together] + [None] * (3 - together)
    rig.close()


def test_bytes_are_open_until_they_are_stored(rig: Rig) -> None:
    """Expected first, then known, then none; of what is published it is told how much the writer is behind."""
    first, second = rig.take(), rig.take()
    assert rig.tracker.unstored() == (0, 0)
    expected = rig.tracker.open_bytes
    known = sum(receipt.size for receipt in rig.produce(first))
    assert rig.tracker.unstored() == (2, known)
    assert rig.tracker.open_bytes == expected / 2 + known
    rig.commit()
    rig.tracker.follow()
    assert rig.tracker.unstored() == (0, 0)
    assert rig.tracker.open_bytes == expected / 2
    rig.produce(second)
    rig.finish()
    assert rig.tracker.open_bytes == 0


def test_a_small_server_has_less_open() -> None:
    """A quarter of the server's memory limit, and never more than 256 MiB."""
    assert open_bytes(0) == open_bytes(8 * OPEN_BYTES) == open_bytes(4 * OPEN_BYTES) == OPEN_BYTES
    assert open_bytes(16 << 20) == 4 << 20
    assert open_bytes(1) == 0


def test_with_no_room_at_all_one_shard_is_open_at_a_time(rig: Rig) -> None:
    """So the run goes on, however small the server."""
    tracker = Tracker(rig._fresh(PROMPTS, 2), PROMPTS, rig.ledger, rig.stream, rig._give_up, lambda _: 1, most=0)
    for start in range(0, PROMPTS, 2):
        shard = tracker.next_shard()
        assert rig.indexes(shard) == [start, start + 1]
        assert tracker.next_shard() is None
        assert not tracker.done
        tracker.produced([rig.publish(prompt) for prompt in shard.prompts])
        rig.commit()
        tracker.follow()
    assert tracker.next_shard() is None
    assert tracker.done
    rig.assert_stored()


def test_a_failure_waits_for_a_full_server(tmp_path: Path) -> None:
    """It is refused, kept, and published once there is room; receipts are checked meanwhile."""
    with RealServer("valkey9", "--maxmemory", "20mb", "--maxmemory-policy", "noeviction") as full:
        rig = Rig(tmp_path, full.url)
        shard = rig.take()
        rig.produce(Shard(shard.prompts[1:]))
        culprit = Shard(shard.prompts[:1])
        for _ in range(DEATHS_BEFORE_FAILURE - 1):
            rig.tracker.lost(culprit, blame=True)
            culprit = rig.take()
        rig.tracker.lost(culprit, blame=True)
        with connect(full.url) as other:
            other.config_set("maxmemory", "1")
            rig.commit()
            with pytest.raises(ServerFull, match="maxmemory"):
                rig.check()
            assert 1 in rig.ledger, "the receipt was checked, and found stored"
            other.config_set("maxmemory", "20mb")
        rig.finish()
        rig.assert_stored()
        assert Store(rig.store)["demo"].counts()["failures"] == {"crash": 1}
        rig.close()


def test_prompts_stored_by_an_earlier_driver_are_not_handed_out(rig: Rig) -> None:
    """Results that an earlier driver left in the stream may be committed after the corpus was read ahead; they are done."""
    for index in (0, 1, 2):
        rig.publish(make_prompt(index))
    rig.commit()
    rig.tracker.follow()
    assert rig.indexes(rig.tracker.next_shard()) == [3]
    rig.produce(Shard([make_prompt(3)]))
    rig.finish()
    rig.assert_stored()
    assert rig.gave_up == []


def test_what_was_lost_and_is_stored_nevertheless_is_not_tried_again(rig: Rig) -> None:
    """An actor may publish a part of its shard, and die before it answers."""
    shard = rig.take()
    rig.publish(shard.prompts[0])
    rig.tracker.lost(shard, blame=True)
    rig.commit()
    rig.tracker.follow()
    assert rig.take() == Shard(shard.prompts[1:])
    rig.produce(Shard(shard.prompts[1:]))
    rig.finish()
    rig.assert_stored()


def test_late_answers_change_nothing(rig: Rig) -> None:
    """Receipts and losses of prompts that are stored already are ignored."""
    shard = rig.take()
    rig.produce(shard)
    rig.commit()
    rig.tracker.follow()
    rig.tracker.produced([Receipt(0, ["1-1"], OPEN_BYTES), Receipt(99, ["1-1"], OPEN_BYTES)])
    for _ in range(DEATHS_BEFORE_FAILURE + 1):
        rig.tracker.lost(shard, blame=True)
    rig.check()
    assert rig.indexes(rig.tracker.next_shard()) == [2, 3]
    assert rig.gave_up == []
    rig.produce(Shard([make_prompt(2), make_prompt(3)]))
    rig.finish()
    rig.assert_stored()


def test_a_shard_put_back_comes_next(rig: Rig) -> None:
    """A shard that no actor had room for is handed out before anything else."""
    first, second = rig.take(), rig.take()
    rig.tracker.lost(second, blame=False)
    rig.tracker.put_back(first)
    assert [rig.take(), rig.take()] == [first, second]


# ---- any order of anything


class AnyOrder(RuleBasedStateMachine):
    """Actors, writers, server and driver act and die in any order; afterwards a run without faults must complete."""

    url: str

    @initialize()
    def begin(self) -> None:
        writer_module.REWIND_SECONDS = 1e9
        self._folder = tempfile.TemporaryDirectory(prefix="raylens-test-")
        self.rig = Rig(Path(self._folder.name), self.url)
        self.leased: list[Shard] = []
        self.wipes = 0

    def draw_shard(self, number: int) -> Shard:
        return self.leased.pop(number % len(self.leased))

    @rule()
    def submit(self) -> None:
        if (shard := self.rig.tracker.next_shard()) is not None:
            assert shard.prompts
            assert len(shard.prompts) == 1 or not shard.alone
            self.leased.append(shard)

    @precondition(lambda self: self.leased)
    @rule(number=st.integers(0, 9))
    def answer(self, number: int) -> None:
        self.rig.produce(self.draw_shard(number))

    @precondition(lambda self: self.leased)
    @rule(number=st.integers(0, 9), published=st.integers(0, 2), blame=st.booleans())
    def actor_dies(self, number: int, published: int, blame: bool) -> None:
        shard = self.draw_shard(number)
        for prompt in shard.prompts[:published]:
            self.rig.publish(prompt)
        self.rig.tracker.lost(shard, blame)

    @precondition(lambda self: self.leased)
    @rule(number=st.integers(0, 9))
    def put_back(self, number: int) -> None:
        self.rig.tracker.put_back(self.draw_shard(number))

    @rule(index=st.integers(0, PROMPTS - 1))
    def half_an_attempt(self, index: int) -> None:
        data = make_frames(make_record(index, tokens=60, k=10), self.rig.manifest.uid)
        assert len(data) == 3
        self.rig.stream.publish(data[index % 3])

    @rule(index=st.integers(0, PROMPTS - 1))
    def zombie_actor(self, index: int) -> None:
        self.rig.publish(make_prompt(index))

    @rule()
    def poison(self) -> None:
        self.rig.stream.publish(secrets.token_bytes(20))

    @precondition(lambda self: self.wipes < MAX_VANISHED - 1)
    @rule()
    def server_is_wiped(self) -> None:
        self.wipes += 1
        self.rig.wipe()

    @rule()
    def writer_reads(self) -> None:
        self.rig.writer.step()

    @rule()
    def writer_commits(self) -> None:
        self.rig.writer.commit()

    @rule()
    def writer_dies(self) -> None:
        self.rig.new_writer()

    @rule()
    def follow(self) -> None:
        self.rig.tracker.follow()

    @rule()
    def check(self) -> None:
        self.rig.check()

    @invariant()
    def each_prompt_is_stored_at_most_once(self) -> None:
        entries = [entry.index for commit in Ledger(self.rig.folder).refresh() for entry in commit.entries]
        assert len(entries) == len(set(entries))
        if self.rig.tracker.done:
            assert sorted(entries) == list(range(PROMPTS))

    def teardown(self) -> None:
        # a wiped server gives the ids of the same millisecond again, which are read when the stream is read from its start
        writer_module.REWIND_SECONDS = 0.0
        try:
            for shard in self.leased:
                self.rig.produce(shard)
            self.rig.finish()
            self.rig.assert_stored()
            run = Store(self.rig.store)["demo"]
            assert [outcome.index for outcome in run] == list(range(PROMPTS))
            self.rig.commit()
            assert self.rig.stream.length() == 0
        finally:
            self.rig.close()
            self._folder.cleanup()


def test_any_order_of_deaths_loses_and_doubles_nothing(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever actors, writers and the server do in whichever order, no prompt is ever stored twice and all are at the end."""
    monkeypatch.setattr("raylens.storage.frame.CHUNK_BYTES", 4200)
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", writer_module.REWIND_SECONDS)  # restored at the end
    monkeypatch.setattr(AnyOrder, "url", server.url, raising=False)
    run_state_machine_as_test(AnyOrder, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
