"""Ctrl-C and SIGTERM in this very process: asked, then forced, and afterwards as they were."""

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from raylens.scheduler.stopping import Stopping, heeding

SIGNALS = (signal.SIGINT, signal.SIGTERM)
both = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@both
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """The user is told so once; a third disturbs no cleaning up, and afterwards a signal does what it did before."""
    before = [signal.getsignal(one) for one in SIGNALS]
    with Stopping() as stopping:
        assert not stopping()
        assert signal.getsignal(number) not in before, "or it would end the tests"
        signal.raise_signal(number)
        assert stopping()
        assert capsys.readouterr().err == "stopping; a second Ctrl-C stops at once\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert [signal.getsignal(one) for one in SIGNALS] == [signal.SIG_IGN] * 2
        assert capsys.readouterr().err == ""
    assert [signal.getsignal(one) for one in SIGNALS] == before


class Interrupted(io.RawIOBase):
    """A slow terminal: the signal comes while it takes what is written."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return len(data)


def test_a_signal_while_something_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more can be written at that moment, which is no reason to end the run in an error."""
    terminal = io.TextIOWrapper(io.BufferedWriter(Interrupted()), line_buffering=True)
    monkeypatch.setattr("sys.stderr", terminal)
    with Stopping() as stopping:
        print("checking the corpus", file=terminal)
        assert stopping()


def test_a_signal_where_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a terminal that is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as gone:  # closing it fails too
        monkeypatch.setattr("sys.stderr", gone)
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert stopping()


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    """Python lets only the main thread take them."""
    before = [signal.getsignal(one) for one in SIGNALS]

    def entered() -> tuple[bool, bool]:
        with Stopping() as stopping:
            return stopping(), [signal.getsignal(one) for one in SIGNALS] == before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(entered).result() == (False, True)


def test_what_is_told_is_passed_on_until_the_user_wants_to_stop() -> None:
    """Nothing more is told then."""
    told: list[int] = []
    heeded = heeding(lambda: len(told) == 2, told.append)
    heeded(1)
    heeded(2)
    with pytest.raises(KeyboardInterrupt):
        heeded(3)
    assert told == [1, 2]
