"""The runs of a store as the site last read them: read again only where the ledger has grown."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.exceptions import HTTPException

from raylens.storage.ledger import Ledger
from raylens.storage.store import Run, Store


@dataclass(slots=True)
class _Followed:
    """A run and what its ledger came to so far."""

    run: Run
    ledger: Ledger
    records: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)


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
            prompts = one.run.manifest.prompts
            return {
                "prompts": prompts,
                "records": one.records,
                "failures": dict(one.failures),
                "tokens": one.tokens,
                "complete": one.records + one.failures.total() == prompts,
            }

    def _follow(self, name: str) -> _Followed:
        if name not in self.store.names():
            raise HTTPException(404, f"there is no run {name!r} in this store")
        run = self.store[name]
        one = self._followed.get(name)
        if one is None or one.run.manifest.uid != run.manifest.uid:  # new, or a fresh run took the name
            one = self._followed[name] = _Followed(run, Ledger(run.folder))
        grown = False
        for commit in one.ledger.follow():
            grown = True
            for entry in commit.entries:
                if entry.failure is None:
                    one.records += 1
                    one.tokens += entry.tokens
                else:
                    one.failures[entry.failure] += 1
        if grown:
            one.run = run
        return one
