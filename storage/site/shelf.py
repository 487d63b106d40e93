"""The runs of a store as the site last read them: of a ledger that has grown only what is new is read."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.exceptions import HTTPException

from raylens.storage.layout import named_run
from raylens.storage.run import Run
from raylens.storage.store import Store
from raylens.storage.tally import Tally


@dataclass(slots=True)
class _Followed:
    """A run as of so many commits, what its ledger came to so far, and when files of it were last moved aside."""

    run: Run
    commits: int
    tally: Tally
    repaired: int


class Shelf:
    """The runs of a store, by name.

    Raises:
        StoreError: there is no such store.
    """

    def __init__(self, path: str | Path) -> None:
        self.store = Store(path)
        self._followed: dict[str, _Followed] = {}
        self._lock = Lock()

    def run(self, name: str) -> Run:
        """A run, as it is committed now.

        Raises:
            HTTPException: 404, there is no run of that name.
            StoreError: it is damaged.
        """
        with self._lock:
            return self._follow(name).run

    def progress(self, name: str) -> dict[str, Any]:
        """``prompts`` of the corpus, ``records``, ``failures`` by kind, ``tokens``, and ``complete``; as ``Run.counts``, without
        reading again what was counted before.

        Raises:
            HTTPException, StoreError: as ``run``.
        """
        with self._lock:
            one = self._follow(name)
            return one.tally.counts(one.run.manifest.prompts)

    def _follow(self, name: str) -> _Followed:
        folder = named_run(self.store.path, name)  # without a look at all others, of which there may be a thousand
        if folder is None:
            raise HTTPException(404, f"there is no run {name!r} in this store")
        run = Run(folder)
        one = self._followed.get(name)
        repaired = _repaired(run)
        # new, or a fresh run took the name, or commits that were read have been replaced
        if one is None or one.run.manifest.uid != run.manifest.uid or one.repaired != repaired:
            one = self._followed[name] = _Followed(run, 0, Tally(run.folder), repaired)
        one.tally.follow()
        if one.commits != one.tally.ledger.next:  # also where an error came between the two before
            one.run, one.commits = one.run.later(), one.tally.ledger.next
        return one


def _repaired(run: Run) -> int:
    """When ``verify --repair`` last moved something aside, in nanoseconds; 0 if it never did."""
    try:
        return run.folder.damaged.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
