"""What the ledger of a run comes to, followed as it grows: each commit is read once, however often one asks."""

from collections import Counter, deque
from dataclasses import dataclass
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


class Tally:
    """Counts of a run, of which nothing is read at first.

    Attributes:
        ledger: of the run, as far as it was read.
        records, tokens: stored, and the tokens of their prompts.
        failures: stored, by kind.
        last: the last commits, oldest first.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.ledger = Ledger(folder)
        self.records = self.tokens = 0
        self.failures: Counter[str] = Counter()
        self.last: deque[Counted] = deque(maxlen=LAST)
        self._seen = Indexes()

    def counts(self, prompts: int) -> dict[str, Any]:
        """As ``Run.counts`` says, of a corpus of so many prompts."""
        return {
            "prompts": prompts,
            "records": self.records,
            "failures": dict(self.failures),
            "tokens": self.tokens,
            "complete": self.records + self.failures.total() == prompts,
        }

    def follow(self) -> None:
        """Read what was committed since.

        Raises:
            StoreError: the ledger is damaged.
        """
        for commit in self.ledger.follow():
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
