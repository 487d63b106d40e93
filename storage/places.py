"""Where each committed prompt of a run lies, as of one moment."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Entry, Ledger
from raylens.storage.segments import segment_path


class Places:
    """Segment and entry of each committed prompt. What is committed later is in another one.

    Args:
        folder: of the run.
        before: of an earlier moment: only what is new is read then.
        wanted: which entries are kept; all by default.

    Attributes:
        of: prompt id -> segment and entry.

    Raises:
        StoreError: the ledger is damaged.
    """

    def __init__(
        self, folder: RunFolder, before: "Places | None" = None, wanted: Callable[[Entry], bool] = lambda _entry: True
    ) -> None:
        self.of: dict[str, tuple[Path, Entry]] = dict(before.of) if before else {}
        self._next: int = before._next if before else 0
        ledger = Ledger(folder)
        ledger.next = self._next
        for commit in ledger.follow():
            if commit.segment is not None:
                path = segment_path(folder, commit)
                self.of.update((entry.id, (path, entry)) for entry in commit.entries if wanted(entry))
        ledger.check_whole()
        self._next = ledger.next

    @cached_property
    def entries(self) -> list[Entry]:
        """In corpus order."""
        return sorted((entry for _, entry in self.of.values()), key=lambda entry: entry.index)
