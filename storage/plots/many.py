"""The pictures of a whole run, drawn by several processes."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raylens.storage.cores import cores
from raylens.storage.errors import NotDrawn, RaylensError, UsageError
from raylens.storage.layout import RunFolder
from raylens.storage.plots import FORMATS, write
from raylens.storage.plots.request import Request, for_record
from raylens.storage.pools import end_processes, end_with_parent, work_given
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.wanted import Wanted

#: Prompts that a process is handed at a time: few, so that the bar moves and no process is left with the rest.
CHUNK = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What is drawn of every record.

    Attributes:
        kind, suffix, request, font: as of ``write``.
        positions: those to show, as on the command line, or None.
        tokens: those to show, or None.
        folder: where pictures go, each named by its prompt's index: an id may be any text.
    """

    kind: str
    suffix: str
    request: Request
    folder: Path
    positions: str | None = None
    tokens: Wanted | None = None
    font: str | Path | None = None


def plot_all(run: Run, job: Job) -> Iterator[list[Path] | NotDrawn]:
    """Draw every record of a run; the paths of each as they are written, or what it lacks.

    Raises:
        UsageError: a choice that does not fit the kind or the run, or a folder that cannot be written.
        RaylensError: a process that draws was killed.
    """
    if job.suffix not in FORMATS:
        raise UsageError(f"picture format {job.suffix!r}: choose from {', '.join(FORMATS)}")
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{job.folder}: cannot be made: {error.strerror}; choose another folder") from error
    ids = [entry.id for entry in run.entries if entry.failure is None]
    width = len(str(max((entry.index for entry in run.entries), default=0)))
    context = multiprocessing.get_context("spawn")  # not forked: the caller may have threads
    processes = min(cores(), max(1, len(ids)))
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(run.folder.root, job, width)) as pool:
        try:
            # held back from the processes for good: Ctrl-C is for the caller, who then asks for no more
            with work_given(), _interrupts_held_back():
                drawn = pool.map(_draw, ids, chunksize=CHUNK)
            yield from drawn
        except BrokenProcessPool as error:
            end_processes()
            raise RaylensError(
                f"{job.folder}: a process that drew pictures was killed, most likely for want of memory; "
                "free some, or draw with fewer processes, such as two by taskset -c 0,1 raylens plot ..."
            ) from error
        finally:  # also where the caller stops, or a picture cannot be drawn
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started meanwhile get no Ctrl-C, and one that comes meanwhile is heeded at the end: none is started by half."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which processes inherit
    # other threads, such as OpenBLAS has, let it through all the same
    came: list[int] = []
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if ours else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in came[:1]:
            signal.raise_signal(number)


_run: Run
_job: Job
_width: int


def _begin(root: Path, job: Job, width: int) -> None:
    global _run, _job, _width
    end_with_parent()
    _run, _job, _width = Run(RunFolder(root)), job, width


def _draw(prompt: str) -> list[Path] | NotDrawn:
    record = _run[prompt]
    assert isinstance(record, Record)
    path = _job.folder / f"{record.index:0{_width}}.{_job.suffix}"
    try:
        request = for_record(_job.request, record, _job.positions, _job.tokens)
        return write(record, _job.kind, path, request, vocabulary=_run.vocabulary, font=_job.font)
    except NotDrawn as error:
        return error
