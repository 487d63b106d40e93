"""Segments: files of JSON records, one zstd frame a line, so that one record can be read alone and ``zstdcat`` reads all."""

import os
import re
import zlib
from pathlib import Path

import zstandard

from raylens.storage.durable import fsync_folder
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Entry
from raylens.storage.record import Failure, Record
from raylens.storage.record_json import decode_outcome, encode_outcome

#: Bytes of one record's JSON, decompressed; a reader refuses more.
MAX_RECORD_BYTES = 8 << 30

_LEVEL = 3
_NAME = re.compile(r"([0-9]{9,18})-[0-9a-f]{8}\.jsonl\.zst")


class SegmentBuilder:
    """Lines gathered for the next commit."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._entries: list[Entry] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, outcome: Record | Failure) -> None:
        """Append one record or failure."""
        frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(encode_outcome(outcome))
        tokens, failure = (len(outcome.token_ids), None) if isinstance(outcome, Record) else (0, outcome.kind)
        self._entries.append(Entry(outcome.index, outcome.id, self.size, len(frame), tokens, failure))
        self._frames.append(frame)
        self.size += len(frame)

    def write(self, folder: RunFolder, n: int, writer: str) -> tuple[str, int, list[Entry]]:
        """Write the segment durably; its name, checksum and entries. Until a commit names it, it is garbage."""
        name = f"{n:09d}-{writer}.jsonl.zst"
        data = b"".join(self._frames)
        with (folder.records / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(folder.records)
        return name, zlib.crc32(data), self._entries


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
    """Remove the segments that commits up to ``n`` could have named and did not.

    Those of later commits are left alone: a newer writer may be about to name them, or has done so since.
    """
    for path in folder.records.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is not None and int(match[1]) <= n and path.name not in named:
            path.unlink(missing_ok=True)


def read_line(path: Path, entry: Entry) -> bytes:
    """The JSON line of one committed prompt.

    Raises:
        StoreError: the segment is missing or damaged there.
    """
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            frame = file.read(entry.length)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; the store lacks a committed segment") from error
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if not 0 < size <= MAX_RECORD_BYTES:
            raise StoreError(f"{path} at byte {entry.offset}: record declares {size} bytes")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StoreError(f"{path} at byte {entry.offset}: damaged record ({error})") from error


def read_outcome(path: Path, entry: Entry) -> Record | Failure:
    """The record or failure of one committed prompt.

    Raises:
        StoreError: the segment is missing or damaged there.
    """
    line = read_line(path, entry)
    try:
        outcome = decode_outcome(line)
    except StoreError as error:
        raise StoreError(f"{path} at byte {entry.offset}: {error}") from error
    failure = outcome.kind if isinstance(outcome, Failure) else None
    if (outcome.index, outcome.id, failure) != (entry.index, entry.id, entry.failure):
        raise StoreError(f"{path} at byte {entry.offset}: holds prompt {outcome.index}, not prompt {entry.index} as committed")
    return outcome
