"""Which table files hold what is committed, and whether they are what they should be."""

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.tables import ABOUT, FORMAT, KINDS, About

_MERGED = re.compile(r"merged-([0-9]{9,18})-([0-9]{9,18})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files, one of each kind, that hold the records of commits ``first`` to ``last``.

    Attributes:
        stem: of their names in the tables' folder: the segment's, or ``merged-FIRST-LAST-ID`` after ``raylens compact``.
    """

    folder: RunFolder
    stem: str
    first: int
    last: int

    def path(self, kind: str) -> Path:
        """The file of one kind."""
        return self.folder.tables / f"{self.stem}.{kind}.parquet"

    def exist(self) -> bool:
        """Whether both are there."""
        return all(self.path(kind).exists() for kind in KINDS)

    def size(self) -> int:
        """Bytes of both."""
        return sum(self.path(kind).stat().st_size for kind in KINDS)

    def check(self, run: str) -> None:
        """Refuse files that are damaged, of another run or place, or of another version.

        Args:
            run: uid of the run.

        Raises:
            StoreError: naming the file, the reason and the remedy.
        """
        for kind in KINDS:
            path, expected = self.path(kind), About(FORMAT, run, kind, self.first, self.last)
            try:
                found = msgspec.json.decode((pq.read_metadata(path).metadata or {})[ABOUT.encode()], type=About)
            except (OSError, pa.ArrowException, KeyError, msgspec.MsgspecError) as error:
                raise StoreError(f"{path}: damaged table ({_one_line(error)}); {REMEDY}") from error
            if found.format != FORMAT:
                raise StoreError(f"{path}: table of format {found.format}, this raylens reads {FORMAT}; upgrade it, or {REMEDY}")
            if found != expected:
                raise StoreError(
                    f"{path}: table of run {found.run}, commits {found.first} to {found.last}, not its own; {REMEDY}"
                )


#: How tables are mended: they hold nothing that the records do not.
REMEDY = "raylens compact RUN --rebuild makes all tables of a run again"


def committed(folder: RunFolder) -> dict[int, str]:
    """Commit number -> stem of its segment, for each commit that has one.

    Raises:
        StoreError: the ledger is damaged.
    """
    ledger = Ledger(folder)
    segments = {commit.n: commit.segment for commit in ledger.follow() if commit.segment is not None}
    ledger.check_whole()
    return {n: segment.removesuffix(".jsonl.zst") for n, segment in segments.items()}


def merged(folder: RunFolder) -> list[TableFiles]:
    """What ``raylens compact`` merged, in order; of those that overlap, the widest."""
    found = []
    for path in folder.tables.glob("merged-*.prompts.parquet"):
        stem = path.name.removesuffix(".prompts.parquet")
        if match := _MERGED.fullmatch(stem):
            found.append(TableFiles(folder, stem, int(match[1]), int(match[2])))
    chosen: list[TableFiles] = []
    for files in sorted((one for one in found if one.exist()), key=lambda one: (one.first, -one.last, one.stem)):
        if not chosen or files.first > chosen[-1].last:
            chosen.append(files)
    return chosen


def table_files(folder: RunFolder) -> list[TableFiles]:
    """The files that together hold every committed record once, in order of commits.

    Raises:
        StoreError: the ledger is damaged, or tables are missing.
    """
    files = merged(folder)
    covered = {n for one in files for n in range(one.first, one.last + 1)}
    small = [TableFiles(folder, stem, n, n) for n, stem in committed(folder).items() if n not in covered]
    missing = [one for one in small if not one.exist()]
    if missing:
        raise StoreError(
            f"{folder.tables}: no tables for {len(missing)} of {len(small)} segments, such as {missing[0].stem}; "
            f"raylens compact {folder.root.name} makes them"
        )
    return sorted([*files, *small], key=lambda one: one.first)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
