"""Merges small segments into larger ones; whatever ends it, nothing is lost (docs/decisions/0008-compaction.md)."""

import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from raylens.storage.durable import fsync_folder, read_file
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.manifest import read_manifest
from raylens.storage.record import Failure, Record
from raylens.storage.segments import (
    SegmentBuilder,
    covers,
    first_commit,
    inflated_size,
    open_frame,
    remove_garbage,
    remove_segment,
    segment_number,
    segment_path,
)

#: Bytes of a merged segment, at most. Its outcomes are in memory while it is written, some ten times as much.
TARGET_BYTES = 32 << 20
#: Bytes of its lines, decompressed, at most: some 2.4 times as many as compressed, and in a crafted run any number of times.
INFLATED_BYTES = 3 * TARGET_BYTES


@dataclass(frozen=True, slots=True)
class Part:
    """A commit's segment: the commit's number, the first that it stands for, its name, its bytes and those of its lines."""

    n: int
    first: int
    name: str
    size: int
    inflated: int

    def replaces(self, other: "Part") -> bool:
        """Whether this one stands for another, earlier one."""
        return other.n >= self.first


#: Segments that are next to each other and become one.
Group = list[Part]


def compact(folder: RunFolder, watch: Callable[[list[Group]], Iterable[Group]] = iter) -> tuple[int, int]:
    """Merge what is small; the number of segments before and after.

    Args:
        folder: of the run.
        watch: goes through the groups that are to be merged, such as with a progress bar.

    Raises:
        StoreError: a driver or writer is at work, or the run is damaged.
    """
    try:
        with folder.alone():
            run = read_manifest(folder).uid
            parts = _finish(folder)
            merged = 0
            for group in watch(_groups(parts)):
                _merge(folder, run, group)
                merged += len(group) - 1
            return len(parts), len(parts) - merged
    except OSError as error:
        raise StoreError(f"{folder.root}: cannot be compacted ({error}); repeat raylens compact to finish") from error


def _groups(parts: list[Part]) -> list[Group]:
    """Neighbours that fit into one segment; a second compaction finds none."""
    groups: list[Group] = [[]]
    size = inflated = 0
    for part in parts:
        if size + part.size > TARGET_BYTES or inflated + part.inflated > INFLATED_BYTES:
            groups.append([])
            size = inflated = 0
        groups[-1].append(part)
        size, inflated = size + part.size, inflated + part.inflated
    return [group for group in groups if len(group) > 1]


def _merge(folder: RunFolder, run: str, group: Group) -> None:
    """One segment for those of a group; the rename of the last one's commit file is the step that decides."""
    ledger, builder = Ledger(folder), SegmentBuilder(run)
    for part in group:
        for outcome, frame in _frames(folder, _read(ledger, part.n)):
            builder.add_frame(outcome, frame)
    ledger.replace(builder.write(folder, group[-1].n, secrets.token_hex(4), group[0].first))
    _retire(folder, group[:-1])
    remove_segment(folder, group[-1].name)
    fsync_folder(folder.records)


def _frames(folder: RunFolder, commit: Commit) -> Iterator[tuple[Record | Failure, bytes]]:
    """The outcomes of an intact segment, each with its frame byte by byte.

    Raises:
        StoreError: it is damaged.
    """
    path = segment_path(folder, commit)
    data = read_file(path)
    if len(data) != commit.bytes or zlib.crc32(data) != commit.crc32:
        raise StoreError(f"{path}: damaged; raylens verify STORE --repair first")
    for entry in commit.entries:
        frame = data[entry.offset : entry.offset + entry.length]
        yield open_frame(frame, entry), frame


def _retire(folder: RunFolder, parts: list[Part]) -> None:
    """Empty the commits whose records a later one has, then delete their segments.

    The files of commits stay: their numbers are what fences a writer that was away.
    """
    ledger = Ledger(folder)
    for part in parts:
        ledger.replace(Commit.empty(part.n, _read(ledger, part.n).writer))
    for part in parts:
        remove_segment(folder, part.name)


def _read(ledger: Ledger, n: int) -> Commit:
    commit = ledger.read(n)
    if commit is None:
        raise StoreError(f"{ledger.path(n)}: removed meanwhile; nothing else may work on the run")
    return commit


def _finish(folder: RunFolder) -> list[Part]:
    """End what a compaction that was killed left; the segments that the ledger names then.

    Raises:
        StoreError: the run is damaged.
    """
    ledger = Ledger(folder)
    parts: list[Part] = []
    for commit in ledger.follow():
        if commit.segment is None:
            continue
        inflated = inflated_size(segment_path(folder, commit), commit.entries)
        part = Part(commit.n, first_commit(commit), commit.segment, commit.bytes, inflated)
        old = list(takewhile(part.replaces, reversed(parts)))
        if old:
            _check_holds(folder, commit, [_read(ledger, one.n) for one in old])
            _retire(folder, old)
            del parts[-len(old) :]
        parts.append(part)
    ledger.check_whole()
    named: set[str | None] = {part.name for part in parts}
    remove_garbage(folder, ledger.next - 1, named)
    for path in folder.records.glob("merged-*"):
        if path.name not in named and segment_number(path.name) is not None:
            remove_segment(folder, path.name)
    return parts


def _check_holds(folder: RunFolder, merged: Commit, old: list[Commit]) -> None:
    """What a segment was merged from goes only if that one is whole and has it all."""
    for _ in _frames(folder, merged):
        pass
    if not all(covers(merged, commit) for commit in old):
        raise StoreError(f"{Ledger(folder).path(merged.n)}: lacks records of the commits that it stands for; raylens verify")
