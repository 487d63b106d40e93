"""The ledger: the list of committed segments, the only truth of what is done (docs/PROTOCOL.md)."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from raylens.storage.durable import create_file, decode_json, read_file, write_file
from raylens.storage.errors import Fenced, StoreError
from raylens.storage.layout import RunFolder

#: Version of the commit files.
FORMAT = 1
#: Bytes of an entry, at most, that a repair enters; with the longest id that frames may have one takes 25 kB.
MAX_ENTRY_BYTES = 1 << 16

_NAME = re.compile(r"(?:[0-9]{9}|[1-9][0-9]{9,17})\.json")

_Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]  # sums of them are printed as JSON, whose readers take 64 bits
_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
#: Of a prompt in the corpus; bounded, as a damaged file must not ask for memory without end.
Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 30)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One committed prompt: where its line lies in the segment, and how it ended.

    Attributes:
        index, id: of the prompt.
        offset, length: bytes of its zstd frame in the segment.
        tokens: tokens of the prompt, 0 for a failure.
        failure: None for a record, else the failure's kind.
    """

    index: Index
    id: str
    offset: _Size
    length: _Size
    tokens: _Tokens
    failure: str | None


class Commit(msgspec.Struct, frozen=True):
    """Commit ``n`` of a run. ``segment`` is None where a writer took the run over, or found nothing right."""

    format: int
    n: int
    writer: str
    segment: str | None
    bytes: _Size
    crc32: int
    entries: list[Entry]

    @classmethod
    def empty(cls, n: int, writer: str) -> "Commit":
        """One that names no segment."""
        return cls(FORMAT, n, writer, None, 0, 0, [])


class Indexes:
    """A set of prompt indexes: a bit a prompt, 1.25 MB for ten million."""

    def __init__(self) -> None:
        self._has = bytearray()
        self.count = 0

    def __contains__(self, index: int) -> bool:
        return 0 <= index < 8 * len(self._has) and bool(self._has[index >> 3] >> (index & 7) & 1)

    def add(self, index: int) -> None:
        """Put an index in; one that is in already changes nothing."""
        place, bit = index >> 3, 1 << (index & 7)
        if place >= len(self._has):
            self._has.extend(bytes(max(place + 1 - len(self._has), len(self._has))))
        if not self._has[place] & bit:
            self._has[place] |= bit
            self.count += 1


class Ledger:
    """The commits of one run, read in order and followed as they grow.

    Attributes:
        next: number of the first commit that does not exist yet.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._done = Indexes()
        self.next = 0

    @property
    def count(self) -> int:
        """Prompts that are in the ledger."""
        return self._done.count

    def __contains__(self, index: int) -> bool:
        return index in self._done

    def refresh(self) -> list[Commit]:
        """Read the commits made since the last call.

        Raises:
            StoreError: a commit file is damaged or of another version.
        """
        return list(self.follow())

    def follow(self) -> Iterator[Commit]:
        """The same, one at a time: the entries of ten million prompts are never in memory together.

        Raises:
            StoreError: a commit file is damaged or of another version.
        """
        while (commit := self.read(self.next)) is not None:
            self._learn(commit)
            yield commit

    def check_whole(self) -> None:
        """Refuse a ledger in which a commit is missing before another.

        Raises:
            StoreError: naming the missing file.
        """
        last = max(self.numbers(), default=-1)
        missing = self.path(self.next)
        if last > self.next and not missing.exists():
            raise StoreError(f"{missing}: missing, though later commits exist; restore it, or use raylens verify --repair")

    def append(self, commit: Commit) -> None:
        """Make ``commit`` exist, durably.

        Raises:
            Fenced: that number exists, so another writer owns the run.
            StoreError: its file would be larger than one that is read.
        """
        if not create_file(self.path(commit.n), msgspec.json.encode(commit)):
            raise Fenced(f"{self._folder.root}: another writer took over at commit {commit.n}")
        self._learn(commit)

    def replace(self, commit: Commit) -> None:
        """Have ``commit`` stand in the place of the one of its number, durably; for who holds the run alone.

        Raises:
            StoreError: its file would be larger than one that is read.
        """
        write_file(self.path(commit.n), msgspec.json.encode(commit))

    def take_over(self, writer: str) -> Iterator[Commit]:
        """Yield the commits that exist, then own the run: an empty commit after the last of them fences every older writer.

        Raises:
            StoreError: a commit file is damaged or of another version.
        """
        while True:
            yield from self.follow()
            with suppress(Fenced):  # by one that was made meanwhile, and is read next
                self.append(Commit.empty(self.next, writer))
                return

    def path(self, n: int) -> Path:
        """The file of commit ``n``."""
        return self._folder.commits / f"{n:09d}.json"

    def numbers(self) -> list[int]:
        """The numbers of all commit files, in order; damaged ones and those after a gap too."""
        names = [path.name for path in self._folder.commits.glob("*.json") if _NAME.fullmatch(path.name)]
        return sorted(int(name.removesuffix(".json")) for name in names)

    def read(self, n: int) -> Commit | None:
        """Commit ``n``; None if it does not exist.

        Raises:
            StoreError: its file is damaged or of another version.
        """
        path = self.path(n)
        try:
            data = read_file(path)
        except FileNotFoundError as error:
            if path.is_symlink():  # its number is taken, so no writer could go on
                raise StoreError(f"{path}: a link to a file that is not there") from error
            return None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        commit = decode_json(path, data, Commit, FORMAT)
        if commit.n != n or (commit.segment is None and commit.entries):
            raise StoreError(f"{path}: damaged (commit {commit.n} of segment {commit.segment})")
        return commit

    def _learn(self, commit: Commit) -> None:
        for entry in commit.entries:
            self._done.add(entry.index)
        self.next = commit.n + 1
