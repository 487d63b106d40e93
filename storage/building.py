"""Segments made of payloads: in helper processes where batches fill up, since decoding, JSON and tables are most of writing."""

import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from raylens.storage.errors import FrameError, StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit
from raylens.storage.payload import decode_payload, inflated_size
from raylens.storage.pools import end_with_parent, work_given
from raylens.storage.segments import SegmentBuilder

#: Bytes of payloads that are a full batch, which makes segments of about 8 MiB ...
COMMIT_BYTES = 4 << 20
#: ... and bytes that they inflate to, of which some eight times as much is in memory at once: usually 10 MiB, but zeros
#: compress a thousandfold.
INFLATED_BYTES = 32 << 20


@dataclass(slots=True)
class Batch:
    """Payloads for one segment.

    Attributes:
        payloads: of each prompt index.
        entries: that each came in.
        size, inflated: bytes of all, and bytes that they inflate to.
        since: when the first came, by the monotonic clock.
    """

    payloads: dict[int, bytes] = field(default_factory=dict)
    entries: dict[int, set[str]] = field(default_factory=dict)
    size: int = 0
    inflated: int = 0
    since: float = 0.0

    @property
    def full(self) -> bool:
        """Whether no more should be taken."""
        return self.size >= COMMIT_BYTES or self.inflated >= INFLATED_BYTES

    def add(self, index: int, payload: bytes, entries: set[str]) -> None:
        """Take one more."""
        if not self.payloads:
            self.since = time.monotonic()
        self.payloads[index], self.entries[index] = payload, entries
        self.size += len(payload)
        self.inflated += inflated_size(payload)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the segments of one writer.

    Attributes:
        folder, run, vocabulary_size: of the run.
        writer: id of the writer.
    """

    folder: RunFolder
    run: str
    vocabulary_size: int
    writer: str

    def make(self, n: int, payloads: dict[int, bytes]) -> "Made":
        """Write the segment and tables of commit ``n`` durably."""
        segment, refused = SegmentBuilder(self.run), {}
        for index, payload in payloads.items():
            try:
                segment.add(decode_payload(payload, index, self.vocabulary_size))
            except (FrameError, StoreError) as error:  # not a frame, or nothing that JSON can hold
                refused[index] = str(error)
        return Made(segment.write(self.folder, n, self.writer), refused)


@dataclass(frozen=True, slots=True)
class Made:
    """The commit that is to name a segment, without one where no payload was good; and why others were refused, by prompt."""

    commit: Commit
    refused: dict[int, str]


class Helpers:
    """Processes that make segments, started as they are needed.

    Args:
        most: how many; 0 for none.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        spawn = get_context("spawn")  # a fork would share the writer's connection
        self._pool = ProcessPoolExecutor(most, mp_context=spawn, initializer=end_with_parent) if most else None

    def make(self, maker: Maker, n: int, batch: Batch, full: bool) -> "Future[Made]":
        """Begin to make a segment: in a helper where batches fill up, which is seldom worth one otherwise, else here and now.

        Raises:
            BrokenProcessPool: a helper died, or cannot be started.
        """
        if self._pool is not None and full:
            with work_given():
                return self._pool.submit(maker.make, n, batch.payloads)
        made: Future[Made] = Future()
        made.set_result(maker.make(n, batch.payloads))
        return made
