"""A command that goes on in a process of its own while the test does something to it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import HUNG


class Running:
    """``raylens ARGUMENTS``, followed by its lines of JSON if it prints any; killed at the end of the with block.

    Args:
        log: file for its stderr.
        arguments: of the command.
        env: its environment; the test's own by default.
    """

    def __init__(self, log: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._log = log
        command = [sys.executable, "-m", "raylens", *arguments]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True, env=env
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, event: str, words: str = "") -> dict[str, Any]:
        """The next event of a kind whose text holds the words.

        Raises:
            AssertionError: the command ended before.
        """
        for value in self.events():
            if value["event"] == event and words in value.get("text", ""):
                return value
        raise AssertionError(f"ended with {self.process.wait()} before any {event}: {self.stderr()}")

    def finish(self) -> int:
        """Read to the end; the exit code."""
        for _ in self.events():
            pass
        return self.process.wait(timeout=HUNG)

    def stop(self) -> None:
        """What Ctrl-C in its terminal does."""
        self.process.send_signal(signal.SIGINT)

    def stderr(self) -> str:
        return self._log.read_text()

    def children(self, word: str) -> list[psutil.Process]:
        """The living descendants whose command line holds a word."""
        return [one for one in psutil.Process(self.process.pid).children(recursive=True) if word in command_line(one)]

    def events(self) -> Iterator[dict[str, Any]]:
        """Each event as it comes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)


def command_line(process: psutil.Process) -> str:
    """Of a living process; empty for one that has just ended."""
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:  # it has just ended
        return ""
