"""``raylens writer``: writers for the runs of a store whose drivers start none (docs/PROTOCOL.md)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raylens.scheduler.settings import check_helpers
from raylens.scheduler.writer_process import WriterProcess
from raylens.storage.errors import RaylensError
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import read_manifest
from raylens.storage.stream import check_server
from raylens.storage.tally import Tally

#: Seconds between two looks at the store and the writers.
LOOK_SECONDS = 1.0


@dataclass(slots=True)
class _Served:
    """A run that has a writer of ours. ``ledger`` is followed by the service, ``tally`` by whoever asks for metrics.

    Attributes:
        inode: of its run.json.
    """

    inode: int | None
    folder: RunFolder
    prompts: int
    ledger: Ledger
    writer: WriterProcess
    tally: Tally


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
        self._left: dict[str, int] = {}  # runs that are complete or cannot be written, and the inode of their run.json

    def run(self, stopping: Callable[[], bool]) -> bool:
        """Serve until told to stop, or until the one run is complete, which is then said.

        Raises:
            RaylensError: the one run cannot be written.
        """
        if self._only is not None and not self._asking():
            self._say(f"{self._only}: waiting for raylens run --writer external")
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
        marked = (path.parent.name for path in self._runs.glob("*/writer.external"))
        return sorted(
            name
            for name in marked
            if self._only in {None, name} and name not in self._served and (inode := self._inode(name)) is not None
            if self._left.get(name) != inode
        )

    def _inode(self, name: str) -> int | None:
        """Which run has this name: ``run --fresh`` may give it to another. None while there is no run.json."""
        try:
            return RunFolder(self._runs / name).manifest.stat().st_ino
        except OSError:
            return None

    def _leave(self, name: str, inode: int | None) -> None:
        if inode is not None:
            self._left[name] = inode

    def _guarded(self, name: str, act: Callable[[str], None]) -> None:
        """A run that cannot be written does not end the others."""
        inode = self._served[name].inode if name in self._served else self._inode(name)
        try:
            act(name)
        except RaylensError as error:
            self._served.pop(name, None)
            if self._only is not None:
                raise
            self._leave(name, inode)
            self._say(f"{name}: left out: {error}")

    def _begin(self, name: str) -> None:
        folder, inode = RunFolder(self._runs / name), self._inode(name)
        prompts, ledger = read_manifest(folder).prompts, Ledger(folder)
        if self._follow(ledger) == prompts:
            self._complete(name, inode, prompts)
            return
        ledger.check_whole()
        writer = WriterProcess(folder, self._redis, self._helpers)
        self._served[name] = _Served(inode, folder, prompts, ledger, writer, Tally.of(folder))
        self._say(f"{name}: writing, {ledger.count:,} of {prompts:,} prompts are stored")

    def _look_after(self, name: str) -> None:
        one = self._served[name]
        if self._inode(name) not in {None, one.inode}:  # begun anew with other settings: it gets a writer that knows them
            self._served.pop(name).writer.finish()
            return
        before = one.ledger.count
        if self._follow(one.ledger) > before:
            one.writer.committed()
        if one.ledger.count == one.prompts:
            self._served.pop(name).writer.finish()
            self._complete(name, one.inode, one.prompts)
            return
        one.writer.ensure_alive()

    def _follow(self, ledger: Ledger) -> int:
        for _ in ledger.follow():  # one at a time: a ledger may hold millions of entries
            pass
        return ledger.count

    def _complete(self, name: str, inode: int | None, prompts: int) -> None:
        self._leave(name, inode)
        self._say(f"{name}: complete, {prompts:,} prompts are stored")

    def _end_all(self, *seconds: float) -> None:
        while self._served:
            self._served.popitem()[1].writer.finish(*seconds)
