"""Segments: files of JSON records, one zstd frame a line, so that one record can be read alone and ``zstdcat`` reads all."""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import orjson
import zstandard

from raylens.storage.durable import TEMPORARY, fsync_folder, new_file, open_plain
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import FORMAT, Commit, Entry, Ledger
from raylens.storage.record import MAX_VOCABULARY, Failure, Record
from raylens.storage.record_json import decode_outcome, encode_outcome
from raylens.storage.tables import KINDS, TableFiles, table_path, write_tables
from raylens.storage.zstd import zstd

#: Bytes of one record's JSON, decompressed; a reader refuses more.
MAX_RECORD_BYTES = 8 << 30

_LEVEL = 3
#: Bytes of a zstd frame's header, at most.
_HEAD = 18
_SUFFIX = ".jsonl.zst"
_NAME = re.compile(r"(?:merged-(?P<first>[0-9]{9,18})-)?(?P<n>[0-9]{9,18})-[0-9a-f]{8}\.jsonl\.zst")


class SegmentBuilder:
    """What is gathered for the next commit.

    Args:
        run: uid of the run, for the tables.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._outcomes: list[Record | Failure] = []
        self._frames: list[bytes] = []
        self._entries: list[Entry] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, outcome: Record | Failure) -> None:
        """Append one record or failure."""
        self.add_frame(outcome, self._compressor.compress(encode_outcome(outcome)))

    def add_frame(self, outcome: Record | Failure, frame: bytes) -> None:
        """Append one record or failure as the frame that it has in another segment."""
        self._entries.append(entry_of(outcome, self.size, len(frame)))
        self._outcomes.append(outcome)
        self._frames.append(frame)
        self.size += len(frame)

    def write(self, folder: RunFolder, n: int, writer: str, first: int | None = None) -> Commit:
        """Write segment and tables durably, where anything was added; the commit that is to name them, garbage until then.

        Args:
            folder: of the run.
            n, writer: of the commit.
            first: where the segment is to stand for those of commits ``first`` to ``n``.
        """
        if not self._entries:
            return Commit.empty(n, writer)
        merged = "" if first is None else f"merged-{first:09d}-"
        stem = f"{merged}{n:09d}-{writer}"
        name = f"{stem}{_SUFFIX}"
        data = b"".join(self._frames)
        with new_file(folder.records / name) as file:
            file.write(data)
        fsync_folder(folder.records)
        write_tables(TableFiles(folder, stem, n if first is None else first, n), self._run, self._outcomes)
        return Commit(FORMAT, n, writer, name, self.size, zlib.crc32(data), self._entries)


def segment_path(folder: RunFolder, commit: Commit) -> Path:
    """The file a commit names.

    Raises:
        StoreError: the commit names no segment of its records folder.
    """
    name = commit.segment or ""
    if _NAME.fullmatch(name) is None:
        raise StoreError(f"{folder.commits}: commit {commit.n} names the segment {name!r}")
    return folder.records / name


def remove_garbage(folder: RunFolder, n: int, named: set[str | None]) -> None:
    """Remove what commits up to ``n`` could have named and did not, and the files in which they were being written.

    Those of later commits are left alone: a newer writer may be about to name them, or has done so since. So are merged
    segments, which a compaction elsewhere may have named since ``named`` was read, and what a repair elsewhere has named since.
    """
    ledger = Ledger(folder)
    for path in folder.records.iterdir():
        number = segment_number(path.name)
        if number is None or number > n or path.name in named or merged_from(path.name) is not None:
            continue
        commit = ledger.read(number)
        if commit is None or commit.segment != path.name:
            remove_segment(folder, path.name)
    for path in folder.commits.glob(f".*{TEMPORARY}"):
        match = re.match(r"\.([0-9]{9,18})\.json\.", path.name)
        if match is not None and int(match[1]) <= n:
            path.unlink(missing_ok=True)


def remove_segment(folder: RunFolder, name: str) -> None:
    """Delete a segment, and its tables first: without their segment nothing would lead to them."""
    for table in tables_of(folder, name):
        table.unlink(missing_ok=True)
    (folder.records / name).unlink(missing_ok=True)


def tables_of(folder: RunFolder, name: str) -> list[Path]:
    """The paths of a segment's tables, whether they exist or not."""
    return [table_path(folder, segment_stem(name), kind) for kind in KINDS]


def segment_stem(name: str) -> str:
    """What the names of a segment and its tables begin with."""
    return name.removesuffix(_SUFFIX)


def segment_number(name: str) -> int | None:
    """The number of the commit that a segment's file was written for; None if that is no name of a segment."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match["n"])


def merged_from(name: str) -> int | None:
    """The first of the commits that a merged segment stands for; None for any other."""
    match = _NAME.fullmatch(name)
    return None if match is None or match["first"] is None else int(match["first"])


def first_commit(commit: Commit) -> int:
    """The first of the commits that a commit's segment stands for: an earlier one only where it is merged."""
    first = merged_from(commit.segment or "")
    return commit.n if first is None else first


def covers(merged: Commit, commit: Commit) -> bool:
    """Whether a commit of a merged segment stands for an earlier one and has all its prompts."""
    has = {entry.index for entry in merged.entries}
    return first_commit(merged) <= commit.n < merged.n and all(entry.index in has for entry in commit.entries)


def entry_of(outcome: Record | Failure, offset: int, length: int) -> Entry:
    """The ledger's entry of an outcome whose frame lies there."""
    tokens, failure = (len(outcome.token_ids), None) if isinstance(outcome, Record) else (0, outcome.kind)
    return Entry(outcome.index, outcome.id, offset, length, tokens, failure)


def read_line(path: Path, entry: Entry) -> bytes:
    """The JSON line of one committed prompt.

    Raises:
        StoreError: the segment is missing or damaged there.
    """
    frame = read_frame(path, entry)
    with _place_told(path, entry):
        line = decompress_line(frame)
        if not line.startswith(orjson.dumps({"id": entry.id, "index": entry.index})[:-1] + b","):
            open_frame(frame, entry)  # another's, or made by another tool: all of it is read
        return line


def read_outcome(path: Path, entry: Entry, vocabulary_size: int = MAX_VOCABULARY) -> Record | Failure:
    """The record or failure of one committed prompt of a run with such a vocabulary.

    Raises:
        StoreError: the segment is missing or damaged there.
    """
    frame = read_frame(path, entry)
    with _place_told(path, entry):
        return open_frame(frame, entry, vocabulary_size)


@contextmanager
def _place_told(path: Path, entry: Entry) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StoreError(f"{path} at byte {entry.offset}: {error}") from error


def open_frame(frame: bytes, entry: Entry, vocabulary_size: int = MAX_VOCABULARY) -> Record | Failure:
    """The outcome in the frame that an entry names.

    Raises:
        StoreError: it is damaged, or another prompt's.
    """
    outcome = decode_outcome(decompress_line(frame), vocabulary_size)
    if entry_of(outcome, entry.offset, entry.length) != entry:
        raise StoreError(f"holds prompt {outcome.index}, not prompt {entry.index} as committed")
    return outcome


def decompress_line(frame: bytes) -> bytes:
    """The JSON line in one frame.

    Raises:
        StoreError: it is damaged, or declares more than the limit.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if not 0 < size <= MAX_RECORD_BYTES:
            raise StoreError(f"record declares {size} bytes")
        return zstd.decompress(frame, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise StoreError(f"damaged record ({error})") from error


def inflated_size(path: Path, entries: list[Entry]) -> int:
    """Bytes of the lines of these entries, as their frames declare; reads the heads of the frames only.

    Raises:
        StoreError: the segment is missing or damaged there.
    """
    total = 0
    with _opened(path) as file:
        end = os.fstat(file.fileno()).st_size
        for entry in entries:
            head = os.pread(file.fileno(), min(entry.length, _HEAD), min(entry.offset, end))  # an entry may say any offset
            try:
                total += zstandard.get_frame_parameters(head).content_size
            except zstandard.ZstdError as error:
                place = f"{path} at byte {entry.offset}"
                raise StoreError(f"{place}: damaged record ({error}); raylens verify STORE --repair first") from error
    return total


def read_frame(path: Path, entry: Entry) -> bytes:
    """The bytes of one committed prompt as they are; fewer where the segment ends before.

    Raises:
        StoreError: the segment cannot be read.
    """
    with _opened(path) as file:
        # an entry may say any length, and as much memory would be taken before the end of the file is found
        length = min(entry.length, max(0, os.fstat(file.fileno()).st_size - entry.offset))
        file.seek(entry.offset if length else 0)
        return file.read(length)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_plain(path) as file:
            yield file
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; the store lacks a committed segment") from error
