"""The writer of a run as its driver sees it when ``raylens writer`` runs it, on this machine or another (docs/PROTOCOL.md)."""

import time
from contextlib import suppress
from types import TracebackType

from raylens.scheduler.progress import Progress
from raylens.storage.errors import BrokerError
from raylens.storage.layout import RunFolder
from raylens.storage.stream import Stream

#: Seconds without a commit after which the driver looks whether entries wait in the stream.
SILENT_SECONDS = 15.0


class ExternalWriter:
    """Asks for a writer, and tells the user where none seems to answer. It is never started or stopped from here."""

    def __init__(self, folder: RunFolder, stream: Stream, progress: Progress) -> None:
        self._folder, self._stream, self._progress = folder, stream, progress
        self._heard = time.monotonic()
        folder.wants_external_writer.touch()

    def committed(self) -> None:
        """Tell that the writer has made progress."""
        self._heard = time.monotonic()

    def ensure_alive(self) -> None:
        """Say so if results wait and nobody stores them."""
        if time.monotonic() - self._heard < SILENT_SECONDS:
            return
        self._heard = time.monotonic()
        with suppress(BrokerError):  # the server is looked after elsewhere
            if waiting := self._stream.length():
                store = self._folder.root.parent.parent
                self._progress.waiting(f"{waiting} entries wait to be stored; is raylens writer {store} --redis URL running?")

    def finish(self) -> None:
        """Nothing: what is published will be stored without this driver."""

    def __enter__(self) -> "ExternalWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...
