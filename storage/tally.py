"""What the ledger of a run comes to, followed as it grows: each commit is read once, however often one asks."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Indexes, Ledger

#: Commits of which the numbers are kept, for a rate.
LAST = 1000


@dataclass(frozen=True, slots=True)
class Counted:
    """One commit: its number, and the prompts and tokens that were new in it."""

    n: int
    prompts: int
    tokens: int


@dataclass(slots=True)
class Tally:
    """Counts of a run.

    Attributes:
        ledger: of the run, as far as it was read.
        records, tokens: stored, and the tokens of their prompts.
        failures: stored, by kind.
        last: the last commits, oldest first.
    """

    ledger: Ledger
    records: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    last: deque[Counted] = field(default_factory=lambda: deque(maxlen=LAST))
    _seen: Indexes = field(default_factory=Indexes)

    @classmethod
    def of(cls, folder: RunFolder) -> "Tally":
        """Of a run, with nothing read yet."""
        return cls(Ledger(folder))

    def counts(self, prompts: int) -> dict[str, Any]:
        """As ``Run.counts`` says, of a corpus of so many prompts."""
        return {
            "prompts": prompts,
            "records": self.records,
            "failures": dict(self.failures),
            "tokens": self.tokens,
            "complete": self.records + self.failures.total() == prompts,
        }

    def follow(self) -> bool:
        """Read what was committed since; whether there was anything.

        Raises:
            StoreError: the ledger is damaged.
        """
        grown = False
        for commit in self.ledger.follow():
            grown = True
            # a merged segment has its prompts again, where compaction was killed or is at work
            new = [entry for entry in commit.entries if entry.index not in self._seen]
            for entry in new:
                self._seen.add(entry.index)
            tokens = sum(entry.tokens for entry in new)  # of a failure they are 0
            failures = [entry.failure for entry in new if entry.failure is not None]
            self.records += len(new) - len(failures)
            self.tokens += tokens
            self.failures.update(failures)
            self.last.append(Counted(commit.n, len(new), tokens))
        return grown
