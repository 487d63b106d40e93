"""Ctrl-C and SIGTERM in this very process: asked, then forced, and afterwards as they were."""

import signal
from concurrent.futures import ThreadPoolExecutor

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
