"""A driver's pulse: written every two seconds while a run is at work, with an ear for ``raylens cancel``."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from raylens.storage.layout import RunFolder
from raylens.storage.pulse import FORMAT, PULSE_SECONDS, Pulse, pid_namespace, write_pulse


class Heartbeat:
    """While entered, the run's folder says that a driver is at work; afterwards only a killed driver's says so.

    Args:
        folder: of the run, held by this process.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._beat_at = 0.0
        self._figures: dict[str, Any] = dict.fromkeys(
            ("actors", "ready", "deaths", "resubmitted", "in_flight_bytes", "unstored_prompts", "unstored_bytes"), 0
        )

    def due(self) -> bool:
        """Whether it is time for the next pulse."""
        return time.monotonic() - self._beat_at >= PULSE_SECONDS

    def beat(self, waiting: str = "", **figures: int) -> None:
        """Write a pulse; figures that are not named stay as they were.

        Args:
            waiting, figures: fields of ``Pulse``.
        """
        self._beat_at = time.monotonic()
        self._figures |= figures
        host, pids = socket.gethostname(), pid_namespace()
        write_pulse(self._folder, Pulse(FORMAT, host, os.getpid(), time.time(), **self._figures, waiting=waiting, pids=pids))

    def or_cancelled(self, stopping: Callable[[], bool]) -> Callable[[], bool]:
        """Whether the run is to stop, by a signal or by ``raylens cancel``."""
        return lambda: stopping() or self._folder.cancel.exists()

    def while_waiting(self, what: str, ended: Callable[[], bool]) -> Callable[[], bool]:
        """Whether the run is to stop, for what asks that again and again; monitors are told what it waits for meanwhile."""

        def waiting() -> bool:
            if self.due():
                self.beat(what)
            return ended()

        return waiting

    def __enter__(self) -> "Heartbeat":
        self._folder.cancel.unlink(missing_ok=True)  # meant for a driver before this one
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cancel.unlink(missing_ok=True)
        self._folder.pulse.unlink(missing_ok=True)
