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

    request: _Request | None
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
                for name in self._asking():
                    self._guarded(name, self._begin)
                for name in list(self._served):
                    self._guarded(name, self._look_after)
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

    def _asking(self) -> list[str]:
        """Names of runs that want a writer and have none of ours."""
        marked = (path.parent.name for path in self._runs.glob("*/writer.external") if is_text(path.parent.name))
        return sorted(
            name
            for name in marked
            if self._only in {None, name} and name not in self._served and (request := self._request(name)) is not None
            if self._left.get(name) != request
        )

    def _request(self, name: str) -> _Request | None:
        """None while there is no run.json, or nobody asks any more."""
        folder = RunFolder(self._runs / name)
        inode = _inode(folder)
        try:
            return None if inode is None else _Request(inode, folder.wants_external_writer.stat().st_mtime_ns)
        except OSError:
            return None

    def _leave(self, name: str, request: _Request | None) -> None:
        if request is not None:
            self._left[name] = request

    def _guarded(self, name: str, act: Callable[[str], None]) -> None:
        """A run that cannot be written does not end the others."""
        request = self._served[name].request if name in self._served else self._request(name)
        try:
            act(name)
        except RaylensError as error:
            if (one := self._served.pop(name, None)) is not None:
                one.writer.tell_to_end()
            if self._only is not None:
                raise
            self._leave(name, request)
            self._say(f"{name}: left out: {error}")

    def _begin(self, name: str) -> None:
        folder, request = RunFolder(self._runs / name), self._request(name)
        prompts, ledger = read_manifest(folder).prompts, Ledger(folder)
        if self._follow(ledger) == prompts:
            self._complete(name, request, prompts)
            return
        ledger.check_whole()
        writer = WriterProcess(folder, self._redis, self._helpers)
        self._served[name] = _Served(request, folder, prompts, ledger, writer, Tally(folder))
        self._say(f"{name}: writing, {ledger.count:,} of {prompts:,} prompts are stored")

    def _look_after(self, name: str) -> None:
        one = self._served[name]
        if one.request and _inode(one.folder) not in {None, one.request.inode}:  # begun anew: it gets a writer that knows that
            self._served.pop(name).writer.finish()
            return
        before = one.ledger.count
        if self._follow(one.ledger) > before:
            one.writer.committed()
        if one.ledger.count == one.prompts:
            self._served.pop(name).writer.finish()
            self._complete(name, self._request(name), one.prompts)
            return
        one.writer.ensure_alive()

    def _follow(self, ledger: Ledger) -> int:
        for _ in ledger.follow():  # one at a time: a ledger may hold millions of entries
            pass
        return ledger.count

    def _complete(self, name: str, request: _Request | None, prompts: int) -> None:
        self._leave(name, request)
        self._say(f"{name}: complete, {prompts:,} prompts are stored")

    def _end_all(self, *seconds: float) -> None:
        for one in self._served.values():  # all at once, or each would wait for those before it
            one.writer.tell_to_end()
        while self._served:
            name, one = self._served.popitem()
            if amiss := one.writer.finish(*seconds):
                self._say(f"{name}: {amiss}")
