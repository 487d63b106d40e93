"""The storage writer: the one place where stream and store meet (docs/PROTOCOL.md).

Read frames, put together the chunks of one attempt, commit a segment durably, and only then delete from the stream.
Runs as a process of its own: ``python -m raylens.storage.writer`` with ``{"run": FOLDER, "redis": URL, "helpers": N}`` on its
first line of input; it ends when its input does.
"""

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import msgspec

from raylens.storage.building import Batch, Helpers, Made, Maker
from raylens.storage.errors import BrokerError, Fenced, FrameError, RaylensError, StoreError
from raylens.storage.frame import Frame, decode_frame
from raylens.storage.gathering import Gathering
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.log import about, log_to_stderr
from raylens.storage.manifest import read_manifest
from raylens.storage.pools import end_processes
from raylens.storage.quarantine import Quarantine
from raylens.storage.segments import remove_garbage
from raylens.storage.stream import CHECK_SECONDS, Stream

#: Commit when the waiting payloads are a full batch, or the first of them has waited this many seconds.
COMMIT_SECONDS = 2.0
#: Wait this many milliseconds for the next entries.
BLOCK_MS = 200
#: Seconds before a server that is away is asked again.
AWAY_SECONDS = 0.2
#: Read the stream from its start again when nothing new is there, so many seconds after the last time: entries may come back.
REWIND_SECONDS = 5.0
#: What is full and brings nothing new for this many seconds, while attempts wait for their other chunks, stands still.
STANDSTILL_SECONDS = 10.0

log = logging.getLogger("raylens.writer")


class Writer:
    """Moves one run's results from its stream to its folder.

    Args:
        folder: of the run; run.json must exist.
        stream: of the run.
        helpers: processes that may make segments beside this one.

    Raises:
        StoreError: the run's folder is damaged.
    """

    def __init__(self, folder: RunFolder, stream: Stream, helpers: int = 0) -> None:
        manifest = read_manifest(folder)
        self._folder = folder
        self._stream = stream
        self._run, self._prompts = manifest.uid, manifest.prompts
        self._quarantine = Quarantine(folder)
        self._ledger = Ledger(folder)
        self._named: set[str | None] = set()  # segments of all commits
        self._id = secrets.token_hex(4)
        self._cursor = "0-0"
        self._away = self._undeleted = False
        self._rewound = time.monotonic()
        self._gathering = Gathering()
        self._maker = Maker(folder, manifest.uid, manifest.vocabulary_size, self._id)
        self._helpers = Helpers(helpers)
        self._batch = Batch()
        self._making: deque[tuple[Batch, Future[Made]]] = deque()  # segments of the next commits, in order
        self._ready: dict[int, set[str]] = {}  # prompt of a batch -> entries to delete once it is committed
        self._progressed = time.monotonic()
        self._spent: set[str] = set()  # entries whose prompt is in the ledger, or that are in quarantine

    def take_over(self) -> None:
        """Own the run: an empty commit fences any older writer, whose uncommitted segments are then garbage."""
        self._named.update(commit.segment for commit in self._ledger.take_over(self._id))
        self._remove_garbage()

    def step(self) -> int:
        """Read once, commit if due; how many entries were read.

        Raises:
            Fenced: another writer took over.
        """
        while len(self._making) > self._helpers.most:  # no more is read than can be worked on
            self._commit_next()
        entries = self._read()
        for entry, data in entries:
            self._accept(entry, data)
            if self._batch.full:
                self._make(full=True)
        if self._batch.payloads and (self._has_all() or time.monotonic() - self._batch.since >= COMMIT_SECONDS):
            self._make(full=False)
        while self._making and self._making[0][1].done():
            self._commit_next()
        if not entries:
            self._end_standstill()
        self._delete_spent()
        return len(entries)

    def _has_all(self) -> bool:
        """Whether every prompt that is not stored is here: nothing more is to come that a commit could wait for."""
        return self._ledger.count + len(self._ready) == self._prompts

    def commit(self) -> None:
        """Make the waiting records durable, enter them in the ledger, and only then delete their entries."""
        if self._batch.payloads:
            self._make(full=False)
        while self._making:
            self._commit_next()

    def _make(self, full: bool) -> None:
        """Begin the segment of the waiting payloads. It is of the commit that follows those that are being made."""
        self._check_unmoved()
        batch, self._batch = self._batch, Batch()
        n = self._ledger.next + len(self._making)
        self._making.append((batch, self._helpers.make(self._maker, n, batch, full)))

    def _commit_next(self) -> None:
        batch, future = self._making[0]
        try:
            made = future.result()
        finally:  # a segment that could not be written may be one of a run that is no longer there
            self._check_unmoved()
        self._ledger.append(made.commit)
        self._making.popleft()
        self._named.add(made.commit.segment)
        found = about(commit=made.commit.n, prompts=len(made.commit.entries), bytes=made.commit.bytes)
        log.info("commit %d: %d prompts, %d bytes", made.commit.n, len(made.commit.entries), made.commit.bytes, extra=found)
        for index, reason in made.refused.items():
            self._refuse_payload(index, reason, batch)
        for entry in made.commit.entries:
            self._spent |= self._ready.pop(entry.index)
        self._spent |= self._gathering.drop(self._ledger.__contains__)
        self._progressed = time.monotonic()
        self._delete_spent()

    def _refuse_payload(self, index: int, reason: str, batch: Batch) -> None:
        for entry in batch.entries[index]:
            self._refuse(entry, reason, batch.payloads[index], index)
        if self._ready.pop(index) > batch.entries[index]:  # another attempt, which may be good
            self._cursor = "0-0"

    def _end_standstill(self) -> None:
        """Refuse the oldest incomplete attempt if such attempts fill the server or our memory, so that none is ever completed.

        It may be one that its actor died on, or one of several that wait for each other's room; its prompt is sent again.
        """
        moved = max(self._gathering.grew, self._progressed)
        if not self._gathering.size or self._ready or time.monotonic() - moved < STANDSTILL_SECONDS:
            return
        try:
            reason = self._gathering.hinders(self._stream.memory())
        except BrokerError:
            return
        if reason:
            for entry, index, body in self._gathering.drop_oldest():
                self._refuse(entry, f"incomplete, and {reason}", body, index)
            self._progressed = time.monotonic()

    def _check_unmoved(self) -> None:
        """``run --fresh`` moves a run's folder when no writer works on it, which locks tell it on one machine only."""
        if read_manifest(self._folder).uid != self._run:
            raise Fenced(f"{self._folder.root}: is another run now; this one was moved by run --fresh")

    def _remove_garbage(self) -> None:
        self._check_unmoved()  # or what another run's writer is about to commit would be taken for garbage
        remove_garbage(self._folder, self._ledger.next - 1, self._named)

    def _read(self) -> list[tuple[str, bytes]]:
        try:
            entries = self._stream.read(self._cursor, BLOCK_MS)
        except BrokerError as error:
            if not self._away:  # once an outage, not once a try
                log.warning("server away: %s", error)
            self._away, self._cursor = True, "0-0"
            time.sleep(AWAY_SECONDS)
            return []
        self._away = False
        if entries:
            self._cursor = entries[-1][0]
        elif time.monotonic() - self._rewound > REWIND_SECONDS:
            self._cursor, self._rewound = "0-0", time.monotonic()
        return entries

    def _accept(self, entry: str, data: bytes) -> None:
        if entry in self._spent:
            return
        index: int | None = None
        try:
            frame = decode_frame(data, self._run, self._prompts)
            index = frame.index
            if frame.index in self._ledger:
                self._spent.add(entry)
            elif frame.index in self._ready:
                self._ready[frame.index].add(entry)
            else:
                self._gather(entry, frame)
        except FrameError as error:
            self._refuse(entry, str(error), data, index)

    def _gather(self, entry: str, frame: Frame) -> None:
        if (gathered := self._gathering.add(entry, frame)) is not None:
            payload, entries = gathered
            self._ready[frame.index] = set(entries)
            self._batch.add(frame.index, payload, entries)

    def _refuse(self, entry: str, reason: str, data: bytes, index: int | None) -> None:
        self._quarantine.add(entry, reason, data, index)
        self._spent.add(entry)

    def _delete_spent(self) -> None:
        if not self._spent or self._away:  # they are deleted once it is back
            return
        try:
            self._stream.delete(self._spent)
        except BrokerError as error:  # they are dropped as known when read again
            if not self._undeleted:  # once an outage too
                log.warning("could not delete %d entries: %s", len(self._spent), error)
            self._undeleted = True
        else:
            self._spent.clear()
            self._undeleted = False

    def run(self, stopping: Callable[[], bool]) -> None:
        """Write until told to stop; then what is complete is committed first.

        Raises:
            Fenced: another writer took over.
        """
        self.take_over()
        while not stopping():
            self.step()
        self._read_left()
        self.commit()
        self._remove_garbage()

    def _read_left(self) -> None:
        """Read what the stream holds now. Actors of an external server may go on adding to it; that is the next writer's."""
        try:
            left = self._stream.length()
        except BrokerError:  # what was read before is committed without it
            return
        while left > 0 and (read := self.step()):
            left -= read


class Orders(msgspec.Struct, frozen=True):
    """The first line of a writer process's input."""

    run: str
    redis: str
    helpers: int = 0


def main() -> int:
    """Entry point of the writer process; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which tells us when to end
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    log_to_stderr(Path(orders.run).name)
    owner_gone = threading.Event()

    def watch() -> None:
        # not through sys.stdin: its lock, held by a waiting read, would abort the interpreter's shutdown
        while os.read(0, 1 << 16):
            pass
        owner_gone.set()

    threading.Thread(target=watch, daemon=True).start()
    folder = RunFolder(Path(orders.run))
    try:
        with folder.writing():
            stream = Stream(orders.redis, read_manifest(folder).uid, retries=0, seconds=CHECK_SECONDS)
            Writer(folder, stream, orders.helpers).run(owner_gone.is_set)
    except RaylensError as error:
        log.error("%s", error)
        return error.exit_code
    except BrokenProcessPool as error:  # what it was at is still in the stream
        log.error("a helper died: %s", error)
        end_processes()
        os._exit(1)  # in the first releases of Python 3.11 a pool that broke waits for ever, for a queue that nobody reads
    except OSError as error:  # such as a full disk; what is not committed is still in the stream
        log.error("cannot write: %s", error)
        return StoreError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
