"""``raylens status`` and ``raylens cancel`` beside a real run, and on what is left of one."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens.storage import writer as writer_module
from raylens.storage.layout import RunFolder
from raylens.storage.pulse import FORMAT, SILENT_SECONDS, Pulse, read_pulse, write_pulse
from raylens.storage.server import EmbeddedServer
from raylens.storage.server_status import server_status
from raylens.storage.status import status
from raylens.storage.stream import Stream
from raylens.storage.writer import Writer
from tests.builders import commit_outcomes, make_failure, make_frames, make_record, make_run
from tests.command import raylens_command
from tests.running import Running
from tests.servers import RealServer
from tests.tiny import sentences
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = 12


def told(store: str, *arguments: str) -> dict[str, Any]:
    """What the command says of the one run, as JSON."""
    done = raylens_command("status", store, "r", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["runs"]
    return dict(one)


def test_a_run_is_watched_cancelled_killed_and_finished(server: EmbeddedServer, tmp_path: Path, tiny: Path) -> None:
    """Without a writer it stands still where a test can look at it; it goes on after a cancellation, and after a kill."""
    store, corpus = str(tmp_path / "store"), tmp_path / "prompts.txt"
    corpus.write_text("\n".join(sentences(PROMPTS, 5)))
    run = ["run", str(corpus), "--format", "lines", "-m", str(tiny), "-o", store, "--redis", server.url, "--name", "r", "--json"]
    folder = RunFolder(tmp_path / "store" / "runs" / "r")
    waits = [*run, "--writer", "external", "--actors", "1"]

    with Running(tmp_path / "first", *waits) as driver:
        published = lambda: (now := read_pulse(folder)) and now.unstored_prompts == PROMPTS  # noqa: E731
        wait_until(published, "all is published, and nobody stores it")
        found = told(store)
        assert (found["state"], found["stored"], found["prompts"]) == ("running", 0, PROMPTS)
        pulse = found["driver"]
        assert (pulse["pid"], pulse["host"]) == (driver.process.pid, socket.gethostname())
        assert (pulse["actors"], pulse["ready"], pulse["deaths"], pulse["resubmitted"]) == (1, 1, 0, 0)
        assert pulse["in_flight_bytes"] == pulse["unstored_bytes"] > 0
        words = raylens_command("status", store, "r", "--redis", server.url).stdout
        assert f"0 of {PROMPTS} stored" in words
        assert f"process {driver.process.pid} on" in words
        assert f"{PROMPTS} entries for the writer of r to store" in words
        unhealthy = raylens_command("status", store, "--healthy-within", "60")
        assert unhealthy.returncode == 1
        assert "nor running with a commit in the last 60 seconds: r" in unhealthy.stderr
        cancelled = raylens_command("cancel", store, "r")
        assert cancelled.returncode == 0, cancelled.stderr
        assert f"asked process {driver.process.pid}" in cancelled.stderr
        assert cancelled.stdout == f"r: stopped with 0 of {PROMPTS} prompts stored\n"
        assert driver.finish() == 130, driver.stderr()
    assert told(store)["state"] == "stopped"
    assert told(store)["driver"] is None
    again = raylens_command("cancel", store, "r")
    assert again.returncode == 6
    assert "no driver is working on this run; there is nothing to cancel" in again.stderr

    with Running(tmp_path / "second", *waits) as driver:
        wait_until(lambda: read_pulse(folder), "the driver is at work again")
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.process.wait()
        assert told(store)["state"] == "died"
        assert raylens_command("cancel", store, "r").returncode == 6

    done = raylens_command(*run)
    assert done.returncode == 0, done.stderr
    assert (told(store)["state"], told(store)["stored"], told(store)["driver"]) == ("complete", PROMPTS, None)
    assert not folder.pulse.exists()
    assert not folder.cancel.exists()
    assert raylens_command("status", store, "--healthy-within", "0.001").returncode == 0


def test_a_cancellation_that_nobody_heard_stops_no_later_run(tmp_path: Path, tiny: Path) -> None:
    """It was meant for the driver that was at work then."""
    store = tmp_path / "store"
    command = ["run", "--text", "call me", "-m", str(tiny), "-o", str(store), "--name", "r"]
    folder = RunFolder(store / "runs" / "r")
    folder.create()
    folder.cancel.touch()
    done = raylens_command(*command)
    assert done.returncode == 0, done.stderr


def make_pulse(**changes: Any) -> Pulse:
    pulse = Pulse(FORMAT, "elsewhere", 1, time.time(), 4, 3, 2, 16, 5_000_000, 7, 1_000_000, "the server is full\x1b]0;x\x07")
    return msgspec.structs.replace(pulse, **changes)


def test_rates_failures_and_refusals_are_told(server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of the last minute make the rate, since the writer began if that is later; the text of a driver is escaped."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    folder, manifest = make_run(tmp_path, prompts=10)
    stream = Stream(server.url, manifest.uid)
    stream.create()
    writer = Writer(folder, stream)
    writer.take_over()
    for outcome in [make_record(0), make_record(1), make_failure(2)]:
        for data in make_frames(outcome, manifest.uid):
            stream.publish(data)
    stream.publish(b"poison")
    while writer.step():
        pass
    writer.commit()
    write_pulse(folder, make_pulse())
    commits = sorted(folder.commits.iterdir())
    now = time.time()
    for age, path in zip((30, 2), commits, strict=True):
        os.utime(path, (now - age, now - age))
    found = status(folder)
    assert (found.state, found.stored, found.prompts, found.quarantined) == ("running", 3, 10, 1)
    assert found.failures == {make_failure(2).kind: 1}
    assert found.prompts_per_second == pytest.approx(3 / 30, rel=0.2)
    assert found.tokens_per_second == pytest.approx(found.tokens / 30, rel=0.2)
    assert found.seconds_left == pytest.approx(70, rel=0.2)
    assert found.seconds_since_commit == pytest.approx(2, abs=20)
    assert found.healthy(600)
    assert not msgspec.structs.replace(found, state="stopped").healthy(600), "nobody is at work"
    assert not found.healthy(0.001)
    words = raylens_command("status", str(tmp_path), "demo").stdout
    for expected in (
        "3 of 10 stored (30%)",
        "2 actors died; 16 prompts submitted again",
        f"1 entry; raylens show demo --quarantine --store {tmp_path}",
        "3 of 4 actors up",
        "the server is full",
        "5.0 MB, of which 1.0 MB (7 prompts) wait",
    ):
        assert expected in words
    assert "\x1b" not in words
    write_pulse(folder, make_pulse())
    table = raylens_command("status", str(tmp_path)).stdout.splitlines()
    assert table[1].split()[:4] == ["demo", "running", "3", "10"]
    for age, path in zip((4000, 3000), commits, strict=True):
        os.utime(path, (now - age, now - age))
    assert status(folder).prompts_per_second == 0
    assert status(folder).seconds_left is None
    write_pulse(folder, make_pulse(at=time.time() - 2 * SILENT_SECONDS))
    assert status(folder).state == "silent"
    for path in commits:
        os.utime(path, (now - 10, now - 10))
    assert status(folder).prompts_per_second > 0
    assert status(folder).seconds_left is None, "it may never end"
    folder.pulse.write_text("{")
    assert (status(folder).state, status(folder).driver) == ("stopped", None)
    stream.drop()
    stream.close()


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    """The others are told, then the error."""
    make_run(tmp_path, name="whole")
    damaged, _ = make_run(tmp_path, name="damaged")
    damaged.manifest.write_text("{")
    lost, _ = make_run(tmp_path, name="lost")
    commit_outcomes(lost, make_record(0))
    lost.manifest.unlink()
    done = raylens_command("status", str(tmp_path))
    assert done.returncode == 6
    assert "whole" in done.stdout
    assert "run.json: damaged" in done.stderr
    assert "lost/run.json: No such file" in done.stderr


def test_a_server_tells_of_every_run_where_it_may(server: EmbeddedServer) -> None:
    """By itself it needs SCAN, which a run's user has not; with a store each run is asked for by its id."""
    with RealServer("valkey9", "--maxmemory", "16mb") as own:
        stream = Stream(own.url, "0123456789abcdef")
        stream.create()
        stream.publish(b"frame")
        assert server_status(own.url).streams == {"0123456789abcdef": 1}
        words = raylens_command("status", "--redis", own.url).stdout
        assert "of 17 MB in use" in words
        assert "1 entry for the writer of 0123456789abcdef to store" in words
        stream.close()
    refused = raylens_command("status", "--redis", server.url)
    assert refused.returncode == 0, "as a health check it serves without"
    assert "name the store too" in refused.stdout
    assert raylens_command("status", "--redis", "redis://127.0.0.1:1").returncode == 5
