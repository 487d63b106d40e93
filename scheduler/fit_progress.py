"""What is shown while a lens is fitted."""

import sys

from raylens.scheduler.printable import printable
from raylens.scheduler.progress import Lines, Progress, checking, fetching


def fit_display(*, quiet: bool) -> Progress:
    """The display that fits the option and the terminal."""
    if quiet:
        return Progress()
    return FitBar() if sys.stderr.isatty() else Lines()


class FitBar(Progress):
    """A rich progress bar on stderr, which fills by the tokens that there are to be, and then by the steps."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(console=Console(stderr=True), transient=True, redirect_stdout=False)
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def stage(self, text: str) -> None:
        self._bar.remove_task(self._task)  # a total that is known is never forgotten
        self._task = self._bar.add_task(printable(text), total=None)

    def scanned(self, prompts: int) -> None:
        self._bar.update(self._task, description=checking(prompts))

    def fetched(self, done: int, total: int) -> None:
        self._bar.update(self._task, description=fetching(done, total))

    def tokenized(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def steps(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        self._bar.stop()
