"""Chunks on their way to be a payload: of one attempt each, and never more of them than fit a bound."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from raylens.storage.errors import FrameError
from raylens.storage.frame import Frame
from raylens.storage.server_memory import Memory

#: Bytes of incomplete attempts that are held; four of the largest records. Beyond it the youngest are forgotten, so that the
#: oldest are completed: the entries of the others stay in the stream and are read again when it is read from its start.
MAX_BYTES = 1 << 30
#: From this part of that on no other attempt may find room.
CROWDED = 0.9
#: The part of what a full server holds that incomplete attempts are at least, if it is they that fill it.
STANDSTILL_SHARE = 0.25
#: Bytes that an entry takes beside its body, about.
ENTRY_BYTES = 1024

_Attempt = tuple[int, bytes]


@dataclass(slots=True)
class _Chunks:
    """The chunks of one attempt so far."""

    count: int
    bodies: dict[int, bytes] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)  # and the chunk that each brought
    size: int = 0


class Gathering:
    """The attempts of which some chunks have been read.

    Attributes:
        size: bytes that are held.
        grew: when a chunk came that had not been read before, by the monotonic clock.
    """

    def __init__(self) -> None:
        self._attempts: dict[_Attempt, _Chunks] = {}
        self._newest = (0, 0)  # entry that was read
        self.size = 0
        self.grew = time.monotonic()

    def hinders(self, server: Memory) -> str:
        """What is full of the attempts that are held, so that none can be completed; empty where nothing is."""
        crowded = self.size >= CROWDED * MAX_BYTES
        if server.full and (crowded or self.size >= STANDSTILL_SHARE * server.used):
            return f"the server was full of such: give it more than a maxmemory of {server.limit} bytes"
        return "others like it had taken all the memory that the writer gives them" if crowded else ""

    def add(self, entry: str, frame: Frame) -> tuple[bytes, set[str]] | None:
        """Take a chunk; if its attempt is complete now, the payload and the entries it came in.

        Raises:
            FrameError: the attempt said another number of chunks before.
        """
        attempt = (frame.index, frame.attempt)
        chunks = self._attempts.setdefault(attempt, _Chunks(frame.chunks))
        if frame.chunks != chunks.count:
            raise FrameError(f"chunk count {frame.chunks}, the same attempt said {chunks.count}")
        if (number := _number(entry)) > self._newest:
            self._newest, self.grew = number, time.monotonic()
        if entry not in chunks.entries:
            chunks.entries[entry] = frame.chunk
            size = ENTRY_BYTES + (0 if frame.chunk in chunks.bodies else len(frame.body))
            chunks.bodies.setdefault(frame.chunk, frame.body)
            chunks.size += size
            self.size += size
        if len(chunks.bodies) == chunks.count:
            self._forget(attempt)
            return b"".join(chunks.bodies[chunk] for chunk in range(chunks.count)), set(chunks.entries)
        while self.size > MAX_BYTES:
            self._forget(next(reversed(self._attempts)))
        return None

    def drop(self, known: Callable[[int], bool]) -> set[str]:
        """Forget the attempts at prompts that are known; the entries they came in."""
        spent: set[str] = set()
        for attempt in [attempt for attempt in self._attempts if known(attempt[0])]:
            spent.update(self._forget(attempt).entries)
        return spent

    def drop_oldest(self) -> list[tuple[str, int, bytes]]:
        """Forget the attempt that began first; its entries, each with the prompt's index and the chunk it brought."""
        attempt = next(iter(self._attempts))
        chunks = self._forget(attempt)
        return [(entry, attempt[0], chunks.bodies[chunk]) for entry, chunk in chunks.entries.items()]

    def _forget(self, attempt: _Attempt) -> _Chunks:
        chunks = self._attempts.pop(attempt)
        self.size -= chunks.size
        return chunks


def _number(entry: str) -> tuple[int, int]:
    """An entry's id as the server counts: milliseconds, and which of that one."""
    milliseconds, _, count = entry.partition("-")
    return int(milliseconds), int(count)
