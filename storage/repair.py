"""Replaces damaged commits by ones that name the good records only, and makes tables again (docs/decisions/0004-repair.md)."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from raylens.storage.durable import TEMPORARY, fits, fsync_folder
from raylens.storage.errors import Fenced, StoreError
from raylens.storage.findings import BadCommit, Findings
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import MAX_ENTRY_BYTES, Commit, Ledger
from raylens.storage.record import Failure, Record
from raylens.storage.record_json import decode_outcome
from raylens.storage.segments import (
    SegmentBuilder,
    decompress_line,
    entry_of,
    merged_from,
    open_frame,
    read_frame,
    read_outcome,
    segment_number,
    segment_path,
    tables_of,
)
from raylens.storage.table_files import files_of
from raylens.storage.tables import write_tables
from raylens.storage.verify import examine

#: Bytes of a segment that is searched for records; the writer makes them of 4 MiB of payloads and one more.
MAX_SEARCHED_BYTES = 1 << 30

_MAGIC = re.compile(re.escape(b"\x28\xb5\x2f\xfd"))  # with which each zstd frame begins


def repair(folder: RunFolder) -> list[str]:
    """Mend what can be mended; what was done, a line each.

    Raises:
        StoreError: the run is being done, or must not be touched: run.json is damaged, or another raylens wrote it.
    """
    try:
        with folder.alone():
            found = _mendable(folder)
            if found.bad:
                _fence(folder)
                found = _mendable(folder)  # a writer of another machine may have committed until now
            return [*_repair_commits(found), *_repair_tables(found), *_repair_others(found)]
    except OSError as error:
        raise StoreError(f"{folder.root}: cannot be repaired ({error})") from error


def _mendable(folder: RunFolder) -> Findings:
    found = examine(folder)
    if found.untouchable:
        raise StoreError(found.untouchable[0])
    return found


def _fence(folder: RunFolder) -> None:
    """An empty commit beyond all others, as a new writer makes it: one at work on another machine is then stopped."""
    ledger = Ledger(folder)
    while True:
        with suppress(Fenced):  # by one that was made meanwhile
            ledger.append(Commit.empty(max(ledger.numbers(), default=-1) + 1, secrets.token_hex(4)))
            return


def _repair_commits(found: Findings) -> Iterator[str]:
    folder, writer = found.folder, secrets.token_hex(4)
    for bad in found.bad:
        sources = _segments(folder, bad)
        kept, every = _kept(bad, sources, found)
        # a merged segment that is whole goes on standing for the commits before it, unless these count
        first = merged_from(bad.commit.segment or "") if bad.commit is not None and bad.proven and every else None
        _replace(folder, kept.write(folder, bad.n, writer, first))
        for source in sources:
            _set_aside(folder, *tables_of(folder, source.name), source)
        yield f"commits/{bad.n:09d}.json: kept {len(kept)} records; what was there is in {folder.damaged.name}/"


def _segments(folder: RunFolder, bad: BadCommit) -> list[Path]:
    """The segment a commit names, which may be gone, or where the commit cannot be read, those written for its number."""
    if bad.commit is not None:
        return [segment_path(folder, bad.commit)]
    return sorted(path for path in folder.records.iterdir() if segment_number(path.name) == bad.n)


def _kept(bad: BadCommit, sources: list[Path], found: Findings) -> tuple[SegmentBuilder, bool]:
    """The good records that are not in the ledger, as far as a commit has room for them, and whether that is all of them."""
    assert found.manifest is not None  # without it nothing is mended
    kept, every = SegmentBuilder(found.manifest.uid), True
    entered = MAX_ENTRY_BYTES  # bytes of its entries, with room for what stands around them
    for outcome, frame in _good_records(bad, sources, found.vocabulary_size):
        known = outcome.index < found.manifest.prompts and hash(outcome.id) not in found.doubled
        size = len(msgspec.json.encode(entry_of(outcome, kept.size, len(frame)))) + 1
        if known and outcome.index not in found.done and size <= MAX_ENTRY_BYTES and fits(entered + size):
            entered += size
            found.done.add(outcome.index)
            kept.add_frame(outcome, frame)
        else:
            every = False
    return kept, every


def _good_records(bad: BadCommit, sources: list[Path], vocabulary_size: int) -> Iterator[tuple[Record | Failure, bytes]]:
    for path in sources:
        if bad.commit is None or bad.proven:
            yield from _search(path, vocabulary_size)
            continue
        for entry in bad.good:
            frame = read_frame(path, entry)
            yield open_frame(frame, entry, vocabulary_size), frame


def _search(path: Path, vocabulary_size: int) -> Iterator[tuple[Record | Failure, bytes]]:
    """Every record that a segment holds, each with its frame, whatever lies between them."""
    if not path.is_file() or path.stat().st_size > MAX_SEARCHED_BYTES:
        return
    data = path.read_bytes()
    edges = [match.start() for match in _MAGIC.finditer(data)] + [len(data)]
    first = 0
    while first < len(edges) - 1:
        # the magic number may also occur inside a frame
        for last in range(first + 1, min(first + 4, len(edges))):
            frame = data[edges[first] : edges[last]]
            try:
                outcome = decode_outcome(decompress_line(frame), vocabulary_size)
            except StoreError:
                continue
            yield outcome, frame
            first = last - 1
            break
        first += 1


def _replace(folder: RunFolder, commit: Commit) -> None:
    """Put a commit of the kept records in the place of the damaged one, which is linked into ``damaged/`` before."""
    ledger = Ledger(folder)
    path = ledger.path(commit.n)
    if not os.path.lexists(path):
        ledger.append(commit)
        return
    if path.is_dir() or path.is_symlink():
        _set_aside(folder, path)
    else:
        os.link(path, _free(folder, path.name))
        fsync_folder(folder.damaged)
    ledger.replace(commit)


def _set_aside(folder: RunFolder, *paths: Path) -> None:
    """Move what there is of them into ``damaged/``."""
    for path in paths:
        if os.path.lexists(path):
            path.rename(_free(folder, path.name))
            fsync_folder(folder.damaged)
            fsync_folder(path.parent)


def _free(folder: RunFolder, name: str) -> Path:
    """The path in ``damaged/``, or the first one like it that does not exist."""
    folder.damaged.mkdir(exist_ok=True)
    number, free = 0, folder.damaged / name
    while os.path.lexists(free):
        number += 1
        free = folder.damaged / f"{name}.{number}"
    return free


def _repair_tables(found: Findings) -> Iterator[str]:
    """Make the missing and damaged tables of whole segments again; a crash leaves them missing or damaged."""
    folder = found.folder
    for commit in found.bad_tables:
        assert found.manifest is not None
        files, path = files_of(folder, commit), segment_path(folder, commit)
        outcomes = [read_outcome(path, entry) for entry in commit.entries]
        _set_aside(folder, *tables_of(folder, path.name))
        write_tables(files, found.manifest.uid, outcomes)
        yield f"{folder.tables.name}/{files.stem}: made again from {len(outcomes)} records"


def _repair_others(found: Findings) -> Iterator[str]:
    """Move a damaged vocabulary or certificate away, which a run writes anew, and remove temporary files."""
    folder, damaged = found.folder, {one.file for one in found.damage}
    for path in (folder.vocabulary, folder.certificate):
        if path.name in damaged and path.exists():
            _set_aside(folder, path)
            yield f"{path.name}: moved to {folder.damaged.name}/"
    for name in found.leftovers:
        if name.endswith(TEMPORARY):
            (folder.root / name).unlink()
            yield f"{name}: removed"
