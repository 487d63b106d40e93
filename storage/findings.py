"""What an examination of a run found: damage, leftovers, and what a repair would do."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from raylens.storage.doubles import Ids
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Entry, Indexes
from raylens.storage.manifest import Manifest
from raylens.storage.record import MAX_VOCABULARY


class Damage(msgspec.Struct, frozen=True):
    """A damaged file, from the run's folder, and what is wrong with it."""

    file: str
    problem: str


@dataclass(slots=True)
class BadCommit:
    """A commit that is damaged, or whose segment is.

    Attributes:
        n: its number.
        commit: what it says; None where it is missing, unreadable or names what it must not.
        proven: whether its segment has the size and crc32 it says.
        good: entries whose records are there and are what they say.
    """

    n: int
    commit: Commit | None = None
    proven: bool = False
    good: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Findings:
    """What an examination of one run found.

    Attributes:
        manifest: None if run.json is damaged.
        damage: every damaged file.
        leftovers: files that nothing names.
        bad: the commits that a repair would replace.
        bad_tables: whole commits whose tables are missing or damaged.
        untouchable: which files a repair cannot mend and why, so that it must leave the run alone.
        done: prompts of the commits that are whole.
        ids: of the records that are good.
        doubled: hashes of the ids that more than one of them had when all were read before; these are damaged.
        commits, records, failures, size: what the ledger names and was found good; bytes of segments read.
        lost: prompts that the ledger names and whose records cannot be read.
        quarantined: entries of the stream that were refused.
    """

    folder: RunFolder
    manifest: Manifest | None = None
    damage: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    bad: list[BadCommit] = field(default_factory=list)
    bad_tables: list[Commit] = field(default_factory=list)
    untouchable: list[str] = field(default_factory=list)
    done: Indexes = field(default_factory=Indexes)
    ids: Ids = field(default_factory=Ids)
    doubled: frozenset[int] = frozenset()
    commits: int = 0
    records: int = 0
    failures: int = 0
    lost: int = 0
    size: int = 0
    quarantined: int = 0

    def note(self, path: Path, problem: str) -> None:
        """Enter a damaged file."""
        self.damage.append(Damage(self.name(path), problem))

    def leave_alone(self, path: Path, problem: str) -> None:
        """Enter one for which a repair must not touch the run."""
        self.note(path, problem)
        self.untouchable.append(f"{path}: {problem}")

    def name(self, path: Path) -> str:
        """A file of the run, from the run's folder."""
        return str(path.relative_to(self.folder.root))

    @property
    def vocabulary_size(self) -> int:
        """What ids of tokens are below."""
        return self.manifest.vocabulary_size if self.manifest is not None else MAX_VOCABULARY
