"""Entries of the stream that are not valid: kept beside the run with the reason, up to a limit."""

from datetime import UTC, datetime

import msgspec

from raylens.storage.durable import not_through_links, read_file, store_errors
from raylens.storage.layout import RunFolder

#: Bytes kept of one entry, and entries kept of one run; more are only counted.
MAX_KEPT_BYTES = 1 << 20
MAX_ENTRIES = 64


class Quarantined(msgspec.Struct, frozen=True):
    """One refused entry: its id in the stream, why, its size in bytes, when, and the prompt's index if a valid frame says it."""

    entry: str
    reason: str
    size: int
    time: str = ""
    index: int | None = None


class Quarantine:
    """The quarantine folder of one run: ``reasons.jsonl`` lists every entry, ``ENTRY.bin`` keeps the first ones' bytes."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.quarantine
        self._list = self._folder / "reasons.jsonl"

    def add(self, entry: str, reason: str, data: bytes, index: int | None = None) -> None:
        """Keep one refused entry, whose id is digits and a dash."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = msgspec.json.encode(Quarantined(entry, reason[:500], len(data), now, index))
        with open(self._list, "ab", opener=not_through_links) as file:
            file.write(line + b"\n")
        if sum(1 for _ in self._folder.glob("*.bin")) < MAX_ENTRIES:
            with open(self._folder / f"{entry}.bin", "wb", opener=not_through_links) as file:
                file.write(data[:MAX_KEPT_BYTES])

    def entries(self) -> list[Quarantined]:
        """All refused entries, oldest first.

        Raises:
            StoreError: the list is there and cannot be read.
        """
        with store_errors(self._list):
            if not self._list.exists():
                return []
            data = read_file(self._list)
        return [_read(line) for line in data.split(b"\n") if line]


def _read(line: bytes) -> Quarantined:
    try:
        return msgspec.json.decode(line, type=Quarantined)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the writer was killed while it wrote the line
        return Quarantined("", "this line of the list was cut short", 0)
