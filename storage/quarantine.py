"""Entries of the stream that are not valid: kept beside the run with the reason, up to a limit, and counted beyond it."""

import logging
import os
from datetime import UTC, datetime

import msgspec

from raylens.storage.durable import not_through_links, open_plain, store_errors
from raylens.storage.layout import RunFolder
from raylens.storage.log import about

#: Bytes kept of one entry, and entries kept of one run.
MAX_KEPT_BYTES = 1 << 20
MAX_ENTRIES = 64
#: Bytes of the list, of some 100,000 entries: whoever sends what is refused could fill the disk with it.
MAX_LIST_BYTES = 16 << 20
#: Characters of a reason, and bytes of a line at most: the list ends with the line that reaches its limit.
_REASON, _LINE_BYTES = 500, 4096

log = logging.getLogger("raylens.writer")


class Quarantined(msgspec.Struct, frozen=True):
    """One refused entry of a run's stream.

    Attributes:
        entry: its id in the stream.
        reason: why it was refused, in one line.
        size: in bytes.
        time: when it was refused, in ISO 8601; empty if not known.
        index: of its prompt, if the frame was valid enough to tell.
    """

    entry: str
    reason: str
    size: int
    time: str = ""
    index: int | None = None


class Quarantine:
    """The quarantine folder of one run: ``reasons.jsonl`` lists entries, ``ENTRY.bin`` keeps the first ones' bytes, and ``more``
    has the number of those that came when the list was full."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.quarantine
        self._list = self._folder / "reasons.jsonl"
        self._more = self._folder / "more"
        self._told = False

    def add(self, entry: str, reason: str, data: bytes, index: int | None = None) -> None:
        """Keep one refused entry, whose id is digits and a dash, and log it; when the list is full, only count it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = msgspec.json.encode(Quarantined(entry, reason[:_REASON], len(data), now, index))
        with open(self._list, "ab", opener=not_through_links) as file:
            if file.tell() >= MAX_LIST_BYTES:
                self._count()
                return
            file.write(line + b"\n")
        log.warning("quarantined %s: %s", entry, reason[:_REASON], extra=about(entry=entry, prompt_index=index))
        if sum(1 for _ in self._folder.glob("*.bin")) < MAX_ENTRIES:
            with open(self._folder / f"{entry}.bin", "wb", opener=not_through_links) as file:
                file.write(data[:MAX_KEPT_BYTES])

    def _count(self) -> None:
        if not self._told:
            self._told = True
            log.warning("the list of what is refused is full: from here on it is only counted, in %s", self._more)
        descriptor = not_through_links(str(self._more), os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(descriptor, b"%d\n" % (_number(os.pread(descriptor, 20, 0)) + 1), 0)
        finally:
            os.close(descriptor)

    def entries(self) -> list[Quarantined]:
        """The refused entries, oldest first; the last says how many more there were.

        Raises:
            StoreError: the list is there and cannot be read.
        """
        found = [_read(line) for line in self._lines()]
        if more := self._counted():
            found.append(Quarantined("", f"{more:,} more were refused, and are only counted", 0))
        return found

    def count(self) -> int:
        """How many entries were refused.

        Raises:
            StoreError: the list is there and cannot be read.
        """
        return len(self._lines()) + self._counted()

    def _lines(self) -> list[bytes]:
        with store_errors(self._list):
            if not self._list.exists():
                return []
            with open_plain(self._list) as file:
                # no more than a writer writes, as much memory as there is of it
                size = min(os.fstat(file.fileno()).st_size, MAX_LIST_BYTES + _LINE_BYTES)
                return [line for line in file.read(size).split(b"\n") if line]

    def _counted(self) -> int:
        with store_errors(self._more):
            if not self._more.exists():
                return 0
            with open_plain(self._more) as file:
                return _number(file.read(20))


def _number(data: bytes) -> int:
    return int(data) if data.strip().isdigit() else 0


def _read(line: bytes) -> Quarantined:
    try:
        return msgspec.json.decode(line, type=Quarantined)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the writer was killed while it wrote the line
        return Quarantined("", "this line of the list was cut short", 0)
