"""Where each committed prompt of a run lies, as of one moment."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Entry, Ledger
from raylens.storage.segments import segment_path


class Committed:
    """Segment and entry of each committed prompt. What is committed later is in another one.

    Args:
        folder: of the run.
        before: of an earlier moment: only what is new is read then.
        wanted: which entries are kept; all by default.

    Attributes:
        by_id: prompt id -> segment and entry.

    Raises:
        StoreError: the ledger is damaged, or two prompts have one id.
    """

    def __init__(
        self, folder: RunFolder, before: "Committed | None" = None, wanted: Callable[[Entry], bool] = lambda _entry: True
    ) -> None:
        self.by_id: dict[str, tuple[Path, Entry]] = dict(before.by_id) if before else {}
        ledger = Ledger(folder)
        ledger.next = before._next if before else 0
        for commit in ledger.follow():
            if commit.segment is not None:
                path = segment_path(folder, commit)
                for entry in filter(wanted, commit.entries):
                    self._enter(path, entry)
        ledger.check_whole()
        self._next: int = ledger.next

    def _enter(self, path: Path, entry: Entry) -> None:
        known = self.by_id.get(entry.id)
        if known is not None and known[1].index != entry.index:  # one of them would be in no list
            raise StoreError(
                f"{path}: prompts {known[1].index} and {entry.index} have one id, {entry.id[:80]!r}; "
                "raylens verify STORE --repair removes both, and the same raylens run command makes them again"
            )
        self.by_id[entry.id] = path, entry

    @cached_property
    def entries(self) -> list[Entry]:
        """In corpus order."""
        return sorted((entry for _, entry in self.by_id.values()), key=lambda entry: entry.index)
