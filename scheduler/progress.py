"""How a run shows itself: a bar on a terminal, plain lines elsewhere, or JSON events."""

import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from raylens.scheduler.printable import printable

#: Seconds between two plain lines.
LINE_SECONDS = 10.0
#: Seconds over which the rate is averaged.
_RATE_SECONDS = 60.0


class Progress:
    """What a run, or the fitting of a lens, tells while it goes on. Shows nothing; a display shows what it has a way to."""

    def stage(self, text: str) -> None:
        """A preparation has begun."""

    def scanned(self, prompts: int) -> None:
        """So many prompts of the corpus have been checked."""

    def fetched(self, done: int, total: int) -> None:
        """So many bytes of the model have come from the hub."""

    def tokenized(self, done: int, total: int) -> None:
        """So many tokens that a lens is fitted to are there."""

    def start(self, run: str, total: int, done: int, failed: int) -> None:
        """The run begins with ``done`` of ``total`` prompts in the ledger, ``failed`` of them failures."""

    def passed(self, prompts: int) -> None:
        """So many that are in the ledger have been read past, to find the next that is not."""

    def working(self) -> None:
        """An actor holds a model: rates count from here."""

    def committed(self, records: int, failures: int, tokens: int) -> None:
        """So many more are in the ledger."""

    def prompt_failed(self, prompt: str, kind: str) -> None:
        """A prompt is in the ledger as a failure; ``committed`` counts it with the others of its commit."""

    def in_flight(self, size: int) -> None:
        """So many bytes are between submission and commit now, as far as they are known; shown with what is told next."""

    def waiting(self, text: str) -> None:
        """What the run is waiting for, or an event such as a restart."""

    def steps(self, done: int, total: int) -> None:
        """So many steps of the fitting of a lens are made."""

    def failed(self, message: str, exit_code: int) -> None:
        """The run cannot go on; the message is printed by who called it."""

    def interrupted(self) -> None:
        """The user stopped it before it began, or for the second time; who called it says how it is resumed."""

    def close(self) -> None:
        """It has ended."""


class Meter:
    """Counts and rates that every display shares."""

    def __init__(self) -> None:
        self.run, self.total, self.done, self.failures, self.tokens, self.in_flight = "", 0, 0, 0, 0, 0
        self._marks: deque[tuple[float, int, int]] = deque()

    def start(self, run: str, total: int, done: int, failed: int) -> None:
        self.run, self.total, self.done, self.failures = run, total, done, failed
        self._marks.append((time.monotonic(), done, 0))

    def begin(self) -> None:
        """Count rates from now, unless something is done already."""
        if len(self._marks) == 1:
            self._marks[0] = (time.monotonic(), self.done, self.tokens)

    def add(self, records: int, failures: int, tokens: int) -> None:
        self.done += records + failures
        self.failures += failures
        self.tokens += tokens
        now = time.monotonic()
        self._marks.append((now, self.done, self.tokens))
        while len(self._marks) > 2 and now - self._marks[1][0] > _RATE_SECONDS:
            self._marks.popleft()

    def rate(self) -> tuple[float, float]:
        """Prompts and tokens a second over the last minute."""
        if not self._marks:
            return 0.0, 0.0
        then, done, tokens = self._marks[0]
        seconds = max(time.monotonic() - then, 1e-9)
        return (self.done - done) / seconds, (self.tokens - tokens) / seconds

    def eta(self) -> float | None:
        """Seconds to the end at this rate; None before the first records: failures alone say nothing of them."""
        prompts, tokens = self.rate()
        return (self.total - self.done) / prompts if prompts > 0 and tokens > 0 else None

    def line(self) -> str:
        """One line of text."""
        _, tokens = self.rate()
        parts = [f"{self.done:,}/{self.total:,} prompts", f"{tokens:,.1f} tokens/s"]
        if self.in_flight:
            parts.append(f"{self.in_flight / 1e6:,.1f} MB in flight")
        if self.failures:
            parts.append(f"{self.failures:,} failed")
        if (eta := self.eta()) is not None and self.done < self.total:
            parts.append(f"ETA {duration(eta)}")
        return ", ".join(parts)


class _ForPeople(Progress, ABC):
    """What is said in the same words whether in lines or before a bar."""

    def __init__(self) -> None:
        self._meter = Meter()

    def scanned(self, prompts: int) -> None:
        self._so_far(f"checking the corpus: {prompts:,} prompts so far")

    def fetched(self, done: int, total: int) -> None:
        self._so_far(f"fetching the model: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    def tokenized(self, done: int, total: int) -> None:
        self._so_far(f"tokenizing: {done:,} of {total:,} tokens")

    def passed(self, prompts: int) -> None:
        self._so_far(f"reading past what is stored: {prompts:,} prompts so far")

    def in_flight(self, size: int) -> None:
        self._meter.in_flight = size

    @abstractmethod
    def _so_far(self, text: str) -> None:
        """How far something is, told more often than anybody reads."""


class Lines(_ForPeople):
    """Plain lines on stderr, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def stage(self, text: str) -> None:
        self._say(text)

    def start(self, run: str, total: int, done: int, failed: int) -> None:
        self._meter.start(run, total, done, failed)
        self._say(f"run {run}: {total:,} prompts" + (f", {done:,} already done" if done else ""))

    def working(self) -> None:
        self._meter.begin()

    def committed(self, records: int, failures: int, tokens: int) -> None:
        self._meter.add(records, failures, tokens)
        if self._meter.done == self._meter.total:
            self._say(self._meter.line())
        else:
            self._so_far(self._meter.line())

    def waiting(self, text: str) -> None:
        self._say(text)

    def steps(self, done: int, total: int) -> None:
        self._so_far(f"{done:,}/{total:,} steps")

    def _so_far(self, text: str) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._say(text)

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


class Bar(_ForPeople):
    """A rich progress bar on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        super().__init__()
        self._count = Column(no_wrap=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(table_column=self._count),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # Ray keeps the stdout that it finds and writes to it once more at the end, when the bar is gone
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        self._task = self._bar.add_task("starting", total=None, note="")

    def stage(self, text: str) -> None:
        self._show(description=text)

    def start(self, run: str, total: int, done: int, failed: int) -> None:
        self._meter.start(run, total, done, failed)
        self._count.min_width = 2 * len(str(total)) + 1  # of a narrow terminal's line the rest is cut, but not the count
        self._show(description=run, total=total, completed=done, note="")

    def working(self) -> None:
        self._meter.begin()
        self._show(description=self._meter.run)

    def committed(self, records: int, failures: int, tokens: int) -> None:
        self._meter.add(records, failures, tokens)
        note = self._meter.line().partition(", ")[2]
        self._show(description=self._meter.run, completed=self._meter.done, note=note)

    def waiting(self, text: str) -> None:
        self._show(note=text)

    def steps(self, done: int, total: int) -> None:
        left = self._bar.tasks[0].time_remaining
        self._show(completed=done, total=total, note="" if left is None else f"ETA {duration(left)}")

    def close(self) -> None:
        self._bar.stop()

    def _so_far(self, text: str) -> None:
        self._show(description=text)

    def _show(self, **changes: Any) -> None:
        self._bar.start()  # with the first: a command has turned stdout aside by then
        shown: dict[str, Any] = {name: printable(one) if isinstance(one, str) else one for name, one in changes.items()}
        self._bar.update(self._task, **shown)


def choose(*, quiet: bool, as_json: bool = False) -> Progress:
    """The display that fits the options and the terminal."""
    if as_json:
        from raylens.scheduler.events import Events

        return Events()
    if quiet:
        return Progress()
    return Bar() if sys.stderr.isatty() and _redraws() else Lines()


def _redraws() -> bool:
    """Whether the terminal can: of one that cannot, such as Emacs's shell, rich would show nothing at all."""
    from rich.console import Console

    return Console(stderr=True).is_interactive


def duration(seconds: float) -> str:
    """``M:SS`` or ``H:MM:SS``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
