"""A run of which tests play the actors: they publish, and writers store."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import Manifest
from raylens.storage.record import Failure, Record
from raylens.storage.server import EmbeddedServer
from raylens.storage.store import Store
from raylens.storage.stream import Stream
from raylens.storage.writer import Writer
from tests.builders import make_frames, make_run, same
from tests.servers import RealServer


@dataclass
class Bench:
    """One run on one server, with a stream to publish into and writers that read from their own."""

    server: EmbeddedServer | RealServer
    store: Path
    folder: RunFolder
    manifest: Manifest
    open_stream: Callable[..., Stream]
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = self.open_stream(self.server.url, self.manifest.uid)
        self.stream.create()

    @classmethod
    def on(cls, server: EmbeddedServer | RealServer, store: Path, open_stream: Callable[..., Stream], prompts: int) -> Self:
        """A new run of so many prompts."""
        folder, manifest = make_run(store, prompts=prompts)
        return cls(server, store, folder, manifest, open_stream)

    def publish(self, outcome: Record | Failure, attempt: bytes | None = None) -> list[str]:
        """All frames of one attempt; the entries' ids."""
        return [self.stream.publish(data) for data in make_frames(outcome, self.manifest.uid, attempt)]

    def writer(self, stream: Stream | None = None, helpers: int = 0) -> Writer:
        """A new writer that has taken the run over."""
        writer = Writer(self.folder, stream or self.open_stream(self.server.url, self.manifest.uid), helpers)
        writer.take_over()
        return writer

    def stored(self) -> list[int]:
        """The index of each entry of the ledger; one that is there twice is twice in the list."""
        return sorted(entry.index for commit in Ledger(self.folder).refresh() for entry in commit.entries)

    def assert_stored(self, *outcomes: Record | Failure) -> None:
        """Exactly these are in the store, each once, and the stream is empty."""
        assert self.stored() == sorted(outcome.index for outcome in outcomes)
        run = Store(self.store)["demo"]
        assert all(same(run[outcome.id], outcome) for outcome in outcomes)
        assert self.stream.length() == 0

    def assert_no_garbage(self) -> None:
        """Each segment is named by a commit."""
        named = {commit.segment for commit in Ledger(self.folder).refresh()}
        assert {path.name for path in self.folder.records.iterdir()} <= named


def drain(writer: Writer) -> None:
    """Step until nothing is read any more, and commit."""
    while writer.step():
        pass
    writer.commit()
