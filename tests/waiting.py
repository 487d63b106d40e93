"""Waiting for something to become true, in place of sleeping."""

import threading
import time
from collections.abc import Callable

#: Seconds after which whatever is waited for counts as hung; many times what it takes, for the machine may be busy.
HUNG = 600
_PAUSE_SECONDS = 0.02


def wait_until(predicate: Callable[[], object], description: str, seconds: float = HUNG) -> None:
    """Return as soon as the predicate holds.

    Raises:
        AssertionError: naming the condition, if it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {description}")
        pause.wait(_PAUSE_SECONDS)
