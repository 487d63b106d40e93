"""The runs of a store as the site last read them: read again only where the ledger has grown."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.exceptions import HTTPException

from raylens.storage.store import Run, Store
from raylens.storage.tally import Tally


@dataclass(slots=True)
class _Followed:
    """A run, and what its ledger came to so far."""

    run: Run
    tally: Tally


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
            prompts, tally = one.run.manifest.prompts, one.tally
            return {
                "prompts": prompts,
                "records": tally.records,
                "failures": dict(tally.failures),
                "tokens": tally.tokens,
                "complete": tally.records + tally.failures.total() == prompts,
            }

    def _follow(self, name: str) -> _Followed:
        if name not in self.store.names():
            raise HTTPException(404, f"there is no run {name!r} in this store")
        run = self.store[name]
        one = self._followed.get(name)
        if one is None or one.run.manifest.uid != run.manifest.uid:  # new, or a fresh run took the name
            one = self._followed[name] = _Followed(run, Tally.of(run.folder))
        if one.tally.follow():
            one.run = run
        return one
