"""Ctrl-C and SIGTERM: the first asks a run to stop cleanly, the second ends it at once."""

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import ParamSpec

_P = ParamSpec("_P")


class NotBegun(KeyboardInterrupt):
    """The user stopped a run before there was one: none was made, and no earlier one moved aside."""


def heeding(stopping: Callable[[], bool], told: Callable[_P, None]) -> Callable[_P, None]:
    """For what is told how far something is: ends it with KeyboardInterrupt as soon as the user wants to stop."""

    def heeded(*values: _P.args, **named: _P.kwargs) -> None:
        if stopping():
            raise KeyboardInterrupt
        told(*values, **named)

    return heeded


class Stopping:
    """While entered in the main thread, turns the first signal into ``stopping()`` being true.

    The next signal raises KeyboardInterrupt; what is committed is safe either way.
    """

    def __init__(self) -> None:
        self._asked = False
        self._old: dict[int, object] = {}

    def __call__(self) -> bool:
        return self._asked

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            for number in self._old:  # cleaning up must not be interrupted again
                signal.signal(number, signal.SIG_IGN)
            raise KeyboardInterrupt
        self._asked = True
        with suppress(RuntimeError, OSError):  # stderr is in the midst of a line, or gone: the wish is heard all the same
            print("stopping; a second Ctrl-C stops at once", file=sys.stderr)  # noqa: T201

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # else of a program that embeds Python, which could not have it back
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
