"""What is shown while a lens is fitted: a bar on a terminal, else a line now and then."""

import sys
import time
from typing import Any

from raylens.scheduler.printable import printable
from raylens.scheduler.progress import LINE_SECONDS, checking, fetching


class FitProgress:
    """Shows stages and steps on standard error.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._last = time.monotonic()
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()

    def stage(self, text: str) -> None:
        """What is done now."""
        if self._bar is not None:
            self._bar.update(self._task, description=printable(text))
        elif not self._quiet:
            self._say(text)

    def scanned(self, prompts: int) -> None:
        """So many prompts of the corpus have been checked."""
        self._now_and_then(checking(prompts))

    def fetched(self, done: int, total: int) -> None:
        """So many bytes of the model have come from the hub."""
        self._now_and_then(fetching(done, total))

    def steps(self, done: int, total: int) -> None:
        """So many steps of the fitting are made."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        else:
            self._now_and_then(f"{done:,}/{total:,} steps")

    def close(self) -> None:
        """The fitting has ended."""
        if self._bar is not None:
            self._bar.stop()

    def _now_and_then(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=printable(text))
        elif not self._quiet and time.monotonic() - self._last >= LINE_SECONDS:
            self._say(text)

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
