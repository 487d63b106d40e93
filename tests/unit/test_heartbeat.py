"""A driver's pulse as monitors read it, and the wish of ``raylens cancel`` as the driver hears it."""

import os
import socket
from pathlib import Path

import pytest

from raylens.scheduler import heartbeat as module
from raylens.scheduler.heartbeat import Heartbeat
from raylens.storage.layout import RunFolder
from raylens.storage.pulse import Pulse, ask_to_stop, read_pulse
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
