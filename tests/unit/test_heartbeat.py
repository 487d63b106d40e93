"""A driver's pulse as monitors read it, and the wish of ``raylens cancel`` as the driver hears it."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from raylens.scheduler import heartbeat as module
from raylens.scheduler.heartbeat import Heartbeat
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.pulse import FORMAT, SILENT_SECONDS, Pulse, ask_to_stop, pid_namespace, read_pulse, write_pulse
from tests.builders import make_run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path)[0]


def pulse(folder: RunFolder) -> Pulse:
    found = read_pulse(folder)
    assert found is not None
    return found


def test_a_pulse_tells_the_last_of_each_figure(folder: RunFolder) -> None:
    """From the first moment on; what is waited for is told once, and when the run has ended nobody is at work."""
    with Heartbeat(folder) as heart:
        first = pulse(folder)
        assert (first.host, first.pid, first.actors, first.waiting) == (socket.gethostname(), os.getpid(), 0, "")
        heart.beat("a node", actors=3, ready=2)
        heart.beat("the server", ready=1)
        assert (pulse(folder).actors, pulse(folder).ready, pulse(folder).waiting) == (3, 1, "the server")
        heart.beat()
        assert (pulse(folder).actors, pulse(folder).ready, pulse(folder).waiting) == (3, 1, "")
    assert read_pulse(folder) is None


def test_a_cancellation_is_heard_by_the_driver_that_is_at_work(folder: RunFolder) -> None:
    """One that was meant for the driver before is not, and none is left for the next; a signal stops it as well."""
    folder.cancel.touch()
    with Heartbeat(folder) as heart:
        ended = heart.or_cancelled(lambda: False)
        assert not ended()
        assert heart.or_cancelled(lambda: True)()
        ask_to_stop(folder)
        assert ended()
    assert not folder.cancel.exists()


def test_monitors_are_told_what_is_waited_for(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each pulse, however often is asked whether to go on waiting."""
    with Heartbeat(folder) as heart:
        answers = iter([False, False, True])
        waiting = heart.while_waiting("waiting for a node", lambda: next(answers))
        monkeypatch.setattr(module, "PULSE_SECONDS", 1e9)
        assert not waiting()
        assert pulse(folder).waiting == "", "not due yet"
        monkeypatch.setattr(module, "PULSE_SECONDS", 0.0)
        assert not waiting()
        assert pulse(folder).waiting == "waiting for a node"
        assert waiting()


def made_pulse(**changes: Any) -> Pulse:
    """Of a driver on this machine that is this process, a second ago."""
    fields = {"host": socket.gethostname(), "pid": os.getpid(), "at": time.time() - 1, "waiting": "", "pids": pid_namespace()}
    figures = ("actors", "ready", "deaths", "resubmitted", "in_flight_bytes", "unstored_prompts", "unstored_bytes")
    return Pulse(**{"format": FORMAT, **dict.fromkeys(figures, 0), **fields, **changes})


def ended_pid() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_state_of_a_driver() -> None:
    """Only on its own machine can a process be seen to be gone; elsewhere a driver is silent once a minute has passed."""
    gone, now = ended_pid(), time.time()
    assert made_pulse().state(now) == "running"
    assert made_pulse(pid=gone).state(now) == "died"
    assert made_pulse(pid=1 << 70).state(now) == "died", "no process has such a number"
    assert made_pulse(pid=gone, host="elsewhere").state(now) == "running"
    assert made_pulse(pid=gone, pids="pid:[1]").state(now) == "running", "in a container that has this host's name"
    assert made_pulse(at=now - SILENT_SECONDS).state(now) == "running"
    assert made_pulse(at=now - SILENT_SECONDS - 1).state(now) == "silent"
    assert made_pulse(pid=gone, at=0.0).state(now) == "died"


def test_who_can_be_asked_to_stop(folder: RunFolder) -> None:
    """A driver that is silent may hear it yet; where none is at work, or its process is gone, there is nothing to cancel."""
    with pytest.raises(StoreError, match="no driver is working on this run; there is nothing to cancel"):
        ask_to_stop(folder)
    write_pulse(folder, made_pulse(pid=ended_pid()))
    with pytest.raises(StoreError, match="nothing to cancel"):
        ask_to_stop(folder)
    assert not folder.cancel.exists()
    write_pulse(folder, made_pulse(host="elsewhere", at=0.0))
    assert ask_to_stop(folder).host == "elsewhere"
    assert folder.cancel.exists()
