"""``raylens writer``: writers for the runs of a store whose drivers start none (docs/PROTOCOL.md)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raylens.scheduler.settings import check_helpers
from raylens.scheduler.writer_process import WriterProcess
from raylens.storage.errors import RaylensError
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import read_manifest
from raylens.storage.paths import is_text
from raylens.storage.stream import check_server
from raylens.storage.tally import Tally

#: Seconds between two looks at the store and the writers.
LOOK_SECONDS = 1.0


class _Request(NamedTuple):
    """What tells one wish for a writer from the next: ``run --fresh`` makes another run.json, each driver asks anew."""

    inode: int
    asked: int


@dataclass(slots=True)
class _Served:
    """A run that has a writer of ours. ``ledger`` is followed by the service, ``tally`` by whoever asks for metrics."""

    request: _Request
    folder: RunFolder
    prompts: int
    ledger: Ledger
    writer: WriterProcess
    tally: Tally


def _inode(folder: RunFolder) -> int | None:
    """Which run has this folder; None while there is no run.json."""
    try:
        return folder.manifest.stat().st_ino
    except OSError:
        return None


class WriterService:
    """Looks after the writers of a store.

    Args:
        store: folder of runs.
        redis: URL of the server that their drivers use.
        only: the one run to serve; None serves each that asks.
        helpers: of each writer; None chooses by the machine's cores.
        say: told what begins and ends.

    Raises:
        BrokerError: the server cannot be reached or may evict.
    """

    def __init__(self, store: Path, redis: str, only: str | None, helpers: int | None, say: Callable[[str], None]) -> None:
        check_helpers("--helpers", helpers)
        check_server(redis)
        self._runs, self._redis, self._only, self._helpers, self._say = runs_folder(store), redis, only, helpers, say
        self._served: dict[str, _Served] = {}
        self._left: dict[str, _Request] = {}  # runs that are complete or cannot be written, and what was asked of us then

    def run(self, stopping: Callable[[], bool]) -> bool:
        """Serve until told to stop, or until the one run is complete, which is then said.

        Raises:
            RaylensError: the one run cannot be written.
        """
        if not self._asking():
            self._say(f"{self._only or self._runs.parent}: waiting for raylens run --writer external")
        try:
            while not stopping():
                for name, request in self._asking().items():
                    self._guarded(name, request, self._begin)
                for name, one in list(self._served.items()):
                    self._guarded(name, one.request, self._look_after)
                if self._only in self._left:
                    return True
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            self._end_all(0)
            raise
        self._end_all()
        return False

    def served(self) -> list[tuple[RunFolder, Tally, int]]:
        """Each run that is written now, its tally, and how often its writer was started again."""
        return [(one.folder, one.tally, one.writer.restarts) for one in list(self._served.values())]

    def _asking(self) -> dict[str, _Request]:
        """What runs ask that want a writer and have none of ours, by their names."""
        marked = sorted(path.parent.name for path in self._runs.glob("*/writer.external") if is_text(path.parent.name))
        return {
            name: request
            for name in marked
            if self._only in {None, name} and name not in self._served and (request := self._request(name)) is not None
            if self._left.get(name) != request
        }

    def _request(self, name: str) -> _Request | None:
        """None while there is no run.json, or nobody asks any more."""
        folder = RunFolder(self._runs / name)
        try:
            return _Request(folder.manifest.stat().st_ino, folder.wants_external_writer.stat().st_mtime_ns)
        except OSError:
            return None

    def _guarded(self, name: str, request: _Request, act: Callable[[str, _Request], None]) -> None:
        """A run that cannot be written does not end the others."""
        try:
            act(name, request)
        except RaylensError as error:
            if (one := self._served.pop(name, None)) is not None:
                one.writer.tell_to_end()
            if self._only is not None:
                raise
            self._left[name] = request
            self._say(f"{name}: left out: {error}")

    def _begin(self, name: str, request: _Request) -> None:
        folder = RunFolder(self._runs / name)
        prompts, ledger = read_manifest(folder).prompts, Ledger(folder)
        if self._follow(ledger) == prompts:
            self._complete(name, request, prompts)
            return
        ledger.check_whole()
        writer = WriterProcess(folder, self._redis, self._helpers)
        self._served[name] = _Served(request, folder, prompts, ledger, writer, Tally(folder))
        self._say(f"{name}: writing, {ledger.count:,} of {prompts:,} prompts are stored")

    def _look_after(self, name: str, request: _Request) -> None:
        one = self._served[name]
        if _inode(one.folder) not in {None, request.inode}:  # begun anew: it gets a writer that knows that
            self._served.pop(name).writer.finish()
            return
        before = one.ledger.count
        if self._follow(one.ledger) > before:
            one.writer.committed()
        if one.ledger.count == one.prompts:
            self._served.pop(name).writer.finish()
            self._complete(name, self._request(name) or request, one.prompts)  # as asked last, by a driver that came back
            return
        one.writer.ensure_alive()

    def _follow(self, ledger: Ledger) -> int:
        for _ in ledger.follow():  # one at a time: a ledger may hold millions of entries
            pass
        return ledger.count

    def _complete(self, name: str, request: _Request, prompts: int) -> None:
        self._left[name] = request
        self._say(f"{name}: complete, {prompts:,} prompts are stored")

    def _end_all(self, *seconds: float) -> None:
        for one in self._served.values():  # all at once, or each would wait for those before it
            one.writer.tell_to_end()
        while self._served:
            name, one = self._served.popitem()
            if amiss := one.writer.finish(*seconds):
                self._say(f"{name}: {amiss}")
