"""The writer of a run as its driver sees it when ``raylens writer`` runs it, on this machine or another (docs/PROTOCOL.md)."""

from contextlib import suppress

from raylens.storage.durable import touch
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder


class ExternalWriter:
    """Asks for a writer by a file in the run's folder. It is never started or stopped from here.

    Attributes:
        remedy: what a user may do when nothing is stored.

    Raises:
        StoreError: the file cannot be written.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.remedy = f"; is raylens writer {folder.root.parent.parent} --redis URL running?"
        self._wanted = folder.wants_external_writer
        touch(self._wanted)

    def committed(self) -> None:
        """Nothing: its deaths are not counted here."""

    def ask_again(self) -> None:
        """Nothing has been stored for a while: it may have left the run out, as where its disk was full, and is asked anew."""
        with suppress(StoreError):
            touch(self._wanted)

    def ensure_alive(self) -> None:
        """Nothing: whoever runs it looks after it."""

    def finish(self) -> str:
        """Nothing, and nothing goes wrong: what is published will be stored without this driver."""
        return ""

    def __enter__(self) -> "ExternalWriter":
        return self

    def __exit__(self, *_: object) -> None: ...
