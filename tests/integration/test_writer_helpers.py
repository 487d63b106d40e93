"""Helpers make a writer's segments: what is stored is what the writer alone would store, whoever dies."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from raylens.scheduler.writer_process import WriterProcess
from raylens.storage import building as building_module
from raylens.storage import writer as writer_module
from raylens.storage.errors import Fenced
from raylens.storage.frame import split
from raylens.storage.ledger import Ledger
from raylens.storage.payload import encode_payload
from raylens.storage.quarantine import Quarantine
from raylens.storage.record import Failure, Record
from raylens.storage.server import EmbeddedServer
from raylens.storage.stream import Stream
from raylens.storage.writer import Orders
from tests.broken_pools import run_broken
from tests.builders import make_failure, make_large_record, make_record, make_run
from tests.running import command_line
from tests.waiting import wait_until
from tests.writing import Bench

PROMPTS = 12
HELPERS = 2


def publish_wrong(bench: Bench, index: int) -> None:
    """A payload of another prompt than its frame's."""
    for data in split(encode_payload(make_record(index + 1)), bench.manifest.uid, index, b"attempt0"):
        bench.stream.publish(data)


@pytest.fixture
def bench(server: EmbeddedServer, tmp_path: Path, open_stream: Callable[..., Stream]) -> Iterator[Bench]:
    bench = Bench.on(server, tmp_path, open_stream, PROMPTS)
    yield bench
    bench.stream.drop()


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each payload is a full batch."""
    monkeypatch.setattr(building_module, "COMMIT_BYTES", 1)
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)


@pytest.mark.usefixtures("every_step")
def test_what_helpers_make_is_committed_in_order(bench: Bench) -> None:
    """Records, failures and prompts sent twice are stored as they were sent; what is wrong is refused, also batches of it."""
    outcomes: list[Record | Failure] = [make_record(index) for index in range(PROMPTS - 2)]
    outcomes[3] = make_failure(3)
    writer = bench.writer(helpers=HELPERS)
    for outcome in outcomes:
        bench.publish(outcome)
        if outcome.index == 5:
            publish_wrong(bench, PROMPTS - 1)
        writer.step()
        bench.publish(outcome)
    publish_wrong(bench, PROMPTS - 2)
    writer.step()
    writer.commit()
    while writer.step():
        pass
    bench.assert_stored(*outcomes)
    bench.assert_no_garbage()
    refused = [(one.index, one.reason) for one in Quarantine(bench.folder).entries()]
    assert refused == [(n, f"head is of prompt {n + 1}, frame of prompt {n}") for n in (PROMPTS - 1, PROMPTS - 2)]
    commits = Ledger(bench.folder).refresh()
    assert [commit.n for commit in commits] == list(range(1 + PROMPTS)), "one that takes over, and one for each batch"
    assert commits[-1].segment is None


@pytest.mark.parametrize("helpers", [0, HELPERS])
def test_a_second_attempt_replaces_one_that_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch, helpers: int) -> None:
    """It may come before the first is found to be wrong, and is not refused with it."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 1e9)
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    publish_wrong(bench, 2)
    bench.publish(make_record(2))
    writer = bench.writer(helpers=helpers)
    writer.step()
    writer.commit()
    writer.step()
    writer.commit()
    bench.assert_stored(make_record(2))
    bench.assert_no_garbage()
    assert len(Quarantine(bench.folder).entries()) == 1


@pytest.mark.usefixtures("every_step")
def test_a_fenced_writers_segments_are_removed_in_the_end(bench: Bench) -> None:
    """Also those of numbers that its successor comes to later: they were given out when their batches began."""
    old = bench.writer(helpers=HELPERS)
    for index in range(HELPERS + 1):
        bench.publish(make_record(index))
        old.step()
    new = bench.writer(helpers=HELPERS)
    with pytest.raises(Fenced):
        old.commit()
    wait_until(lambda: len(list(bench.folder.records.iterdir())) >= HELPERS, "the old writer's helpers are done")
    new.run(stopping=lambda: True)
    bench.assert_stored(*(make_record(index) for index in range(HELPERS + 1)))
    bench.assert_no_garbage()


@pytest.mark.usefixtures("every_step")
def test_a_segment_in_the_making_is_not_committed_into_a_new_run(bench: Bench) -> None:
    """A helper was at it while ``run --fresh`` of another machine moved the run."""
    bench.publish(make_record(0))
    writer = bench.writer(helpers=1)
    writer.step()
    wait_until(lambda: len(list(bench.folder.tables.iterdir())) == 2, "the segment is made")
    bench.folder.move_aside()
    make_run(bench.store, prompts=PROMPTS)
    with pytest.raises(Fenced, match="moved by run --fresh"):
        writer.commit()
    assert Ledger(bench.folder).refresh() == []


def helpers_of(pid: int) -> list[psutil.Process]:
    """The living helpers of a writer."""
    return [one for one in psutil.Process(pid).children() if "multiprocessing.spawn" in command_line(one)]


def writers() -> list[int]:
    """Process ids of those that this process has started and that live; one that has just begun has no command line yet."""
    return [one.pid for one in psutil.Process().children() if "raylens.storage.writer" in command_line(one)]


@pytest.mark.parametrize("victim", ["helper", "writer"])
def test_a_death_costs_nothing(bench: Bench, victim: str) -> None:
    """Neither a helper's, which ends its writer, nor a writer's, which its helpers do not outlive."""
    for index in range(PROMPTS):
        bench.publish(make_large_record(index))
    with WriterProcess(bench.folder, bench.server.url, HELPERS) as process:
        wait_until(writers, "the writer has a command line")
        (first,) = writers()
        wait_until(lambda: helpers_of(first), "a helper has been started")
        helpers = helpers_of(first)
        (helpers[0] if victim == "helper" else psutil.Process(first)).send_signal(signal.SIGKILL)
        wait_until(lambda: not any(one.is_running() and command_line(one) for one in helpers), "its helpers are gone")
        wait_until(lambda: process.ensure_alive() or process.restarts, "the writer is started again")
        ledger = Ledger(bench.folder)
        wait_until(lambda: ledger.refresh() is not None and ledger.count == PROMPTS, "all is stored")
        assert process.restarts == 1
    bench.assert_stored(*(make_large_record(index) for index in range(PROMPTS)))
    bench.assert_no_garbage()


def test_a_writer_whose_run_was_moved_away_with_its_log(bench: Bench) -> None:
    """It ends, and whoever started it tells what is known, instead of failing at its log."""
    with WriterProcess(bench.folder, bench.server.url, 0) as process:
        wait_until(lambda: Ledger(bench.folder).refresh(), "the writer has taken over")
        bench.folder.root.rename(bench.folder.root.with_name("demo.old-1"))  # from a machine that its lock does not reach
        make_run(bench.store, prompts=PROMPTS)
        told = process.finish()
    assert told.startswith(
        "the writer ended with code 6: its log says nothing; is the disk full, or the run's folder gone? (see "
    )


@pytest.mark.parametrize("before", [True, False])
def test_a_writer_ends_whose_helper_dies_while_another_starts(bench: Bench, before: bool) -> None:
    """It is not left waiting for the one that its pool began as it broke, which the pool does not end."""
    for index in range(PROMPTS):
        bench.publish(make_large_record(index))
    orders = msgspec.json.encode(Orders(str(bench.folder.root), bench.server.url, HELPERS)) + b"\n"
    code, log = run_broken("import sys; from raylens.storage.writer import main; sys.exit(main())", before, orders)
    assert code == 1
    assert "a helper died" in log
