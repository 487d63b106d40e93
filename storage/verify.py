"""Checks every byte of a run against its ledger; changes nothing (docs/FORMAT.md, section What verify finds)."""

import zlib
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from raylens.storage.certificate import read_certificate
from raylens.storage.durable import TEMPORARY, open_plain, store_errors
from raylens.storage.errors import OtherFormat, StoreError
from raylens.storage.findings import BadCommit, Findings
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.manifest import read_manifest
from raylens.storage.quarantine import Quarantine
from raylens.storage.record import Failure, Record
from raylens.storage.segments import covers, first_commit, open_frame, segment_number, segment_path, tables_of
from raylens.storage.table_files import compare, files_of
from raylens.storage.vocabulary import read_vocabulary

#: Commits that may be missing before another; a file further away does not belong to the ledger.
MAX_GAP = 10_000
#: Readings of a run that changes meanwhile, before what is found is believed.
_READINGS = 3


def examine(folder: RunFolder) -> Findings:
    """Read all of a run; once more where it looks damaged and commits were made meanwhile, for it may be compacted just now.

    Raises:
        StoreError: its folders may not be read.
    """
    with store_errors(folder.root):
        for _ in range(_READINGS):
            before = _changed(folder)
            found = _examine(folder)
            if not found.damage or _changed(folder) == before:
                break
    return found


def _changed(folder: RunFolder) -> int:
    """When a commit was last made or replaced, in nanoseconds."""
    return folder.commits.stat().st_mtime_ns if folder.commits.exists() else 0


def _examine(folder: RunFolder, doubled: frozenset[int] = frozenset()) -> Findings:
    found = Findings(folder, doubled=doubled)
    ledger = Ledger(folder)
    numbers = ledger.numbers()
    _examine_manifest(found, bool(numbers))
    named: set[str | None] = set()
    superseded = _superseded(folder, ledger, numbers)
    for n in _each_number(numbers, ledger, found):
        commit = _read_commit(ledger, n, found)
        if commit is not None and n not in superseded:
            named.add(commit.segment)
            _examine_commit(commit, found)
    if more := found.ids.doubled():  # which of two is the right one cannot be told, and the first was taken for good
        return _examine(folder, doubled | more)
    _note_missing_tables(found)
    _examine_vocabulary(found, bool(numbers))
    _examine_certificate(found)
    found.leftovers = sorted(map(found.name, _leftovers(folder, named)))
    found.quarantined = Quarantine(folder).count()
    return found


def _reason(error: StoreError, path: Path) -> str:
    return str(error).removeprefix(str(path)).lstrip(": ")


def _examine_manifest(found: Findings, begun: bool) -> None:
    path = found.folder.manifest
    if not begun and not path.exists():  # a driver was killed before it wrote anything
        return
    try:
        found.manifest = read_manifest(found.folder)
    except StoreError as error:
        why = "without it nothing says what the records are of: restore it, or run --fresh"
        found.leave_alone(path, f"{_reason(error, path)}; {why}")


def _examine_vocabulary(found: Findings, begun: bool) -> None:
    path = found.folder.vocabulary
    if not begun and not path.exists():
        return
    try:
        size = len(read_vocabulary(path))
        if found.manifest is not None and size != found.manifest.vocabulary_size:
            raise StoreError(f"holds {size} tokens, run.json says {found.manifest.vocabulary_size}")
    except StoreError as error:
        found.note(path, f"{_reason(error, path)}; move it away, and the same raylens run command writes it again")


def _examine_certificate(found: Findings) -> None:
    try:
        read_certificate(found.folder)
    except StoreError as error:
        found.note(found.folder.certificate, _reason(error, found.folder.certificate))


def _each_number(numbers: list[int], ledger: Ledger, found: Findings) -> Iterator[int]:
    """The numbers a whole ledger would have: those of the files, and those that are missing between them."""
    before = -1
    for number in numbers:
        if number - before > MAX_GAP:
            found.leave_alone(ledger.path(number), f"{number - before - 1} commits are missing before it; move it away")
            return
        yield from range(before + 1, number + 1)
        before = number


def _read_commit(ledger: Ledger, n: int, found: Findings) -> Commit | None:
    """A commit that can be read and names a segment of its own, or none; else it is noted as bad."""
    path = ledger.path(n)
    try:
        commit = ledger.read(n)
        if commit is None:
            raise StoreError("missing, though later commits exist")
        if commit.segment is not None:
            segment_path(found.folder, commit)
            if segment_number(commit.segment) != n or first_commit(commit) > n or commit.writer not in commit.segment:
                raise StoreError(f"names {commit.segment}, the segment of another commit")
    except OtherFormat as error:
        found.leave_alone(path, f"{_reason(error, path)}; use the raylens that wrote it")
        return None
    except StoreError as error:
        found.note(path, _reason(error, path))
        found.bad.append(BadCommit(n))
        return None
    found.commits += 1
    return commit


def _superseded(folder: RunFolder, ledger: Ledger, numbers: list[int]) -> set[int]:
    """Commits whose records are in a later, merged segment too: a compaction was killed. Only where that one has them all."""
    found: set[int] = set()
    for path in folder.records.glob("merged-*"):
        with suppress(StoreError):
            merged = ledger.read(segment_number(path.name) or 0)
            if merged is None or merged.segment != path.name:
                continue
            between = numbers[bisect_left(numbers, first_commit(merged)) : bisect_left(numbers, merged.n)]
            old = [commit for n in between if (commit := ledger.read(n)) is not None and commit.segment is not None]
            if old and all(covers(merged, commit) for commit in old) and _is_whole(folder, merged):
                found.update(commit.n for commit in old)
    return found


def _is_whole(folder: RunFolder, commit: Commit) -> bool:
    path = segment_path(folder, commit)
    try:
        return path.stat().st_size == commit.bytes and _crc32(path) == commit.crc32
    except (OSError, StoreError):
        return False


def _crc32(path: Path) -> int:
    crc32 = 0
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def _examine_commit(commit: Commit, found: Findings) -> None:
    if commit.segment is None:
        return
    bad = BadCommit(commit.n, commit)
    wrong = _wrong_entries(commit, found)
    if wrong:
        found.note(Ledger(found.folder).path(commit.n), wrong)
    path = segment_path(found.folder, commit)
    outcomes: list[Record | Failure] = []
    bad.proven, problems = _examine_segment(path, bad, commit, None if wrong else outcomes, found)
    if problems:
        found.note(path, "; ".join(problems))
    if wrong or problems:
        found.bad.append(bad)
        found.lost += len(commit.entries) - len(bad.good)
    else:
        for entry in commit.entries:
            found.done.add(entry.index)
        _examine_tables(commit, outcomes, found)
    found.records += sum(entry.failure is None for entry in bad.good)
    found.failures += sum(entry.failure is not None for entry in bad.good)
    found.size += commit.bytes


def _examine_tables(commit: Commit, outcomes: list[Record | Failure], found: Findings) -> None:
    if found.manifest is None:
        return
    files = files_of(found.folder, commit)
    if not files.exist():
        found.bad_tables.append(commit)
        return
    try:
        problems = compare(files, found.manifest.uid, outcomes)
    except OtherFormat as error:
        found.leave_alone(found.folder.tables / files.stem, f"{error}; use the raylens that wrote it")
        return
    for kind, problem in problems.items():
        found.note(files.path(kind), f"{problem}; --repair makes it again")
    if problems:
        found.bad_tables.append(commit)


def _note_missing_tables(found: Findings) -> None:
    """One line for all: a run from before there were tables has none."""
    missing = [files.stem for files in (files_of(found.folder, commit) for commit in found.bad_tables) if not files.exist()]
    if missing:
        problem = f"missing for {len(missing)} segments, such as {missing[0]}; --repair makes them from the records"
        found.note(found.folder.tables, problem)


def _wrong_entries(commit: Commit, found: Findings) -> str:
    """What is wrong with the entries by themselves."""
    prompts = found.manifest.prompts if found.manifest is not None else None
    seen: set[int] = set()
    for entry in commit.entries:
        if prompts is not None and entry.index >= prompts:
            return f"enters prompt {entry.index}, the corpus has {prompts}"
        if entry.index in found.done or entry.index in seen:
            return f"enters prompt {entry.index}, which is in the ledger already"
        seen.add(entry.index)
    ranges = sorted((entry.offset, entry.offset + entry.length) for entry in commit.entries)
    edges = [(0, 0), *ranges, (commit.bytes, commit.bytes)]
    if any(end != start for (_, end), (start, _) in pairwise(edges)):
        return f"its entries do not tile the {commit.bytes} bytes of its segment"
    return ""


def _examine_segment(
    path: Path, bad: BadCommit, commit: Commit, outcomes: list[Record | Failure] | None, found: Findings
) -> tuple[bool, list[str]]:
    """Whether size and crc32 are those of the commit, and every problem; what holds goes into ``bad.good`` and ``outcomes``."""
    problems = []
    try:
        size = path.stat().st_size
        with open_plain(path) as file:
            if size != commit.bytes:
                problems.append(f"{size} bytes, its commit says {commit.bytes}")
            elif _crc32(path) != commit.crc32:
                problems.append("crc32 is not that of its commit")
            proven, reasons = not problems, []
            for entry in commit.entries:
                try:
                    if entry.offset + entry.length > size:
                        raise StoreError("beyond the end of the file")
                    file.seek(entry.offset)
                    outcome = open_frame(file.read(entry.length), entry, found.vocabulary_size)
                    if hash(entry.id) in found.doubled:
                        raise StoreError(f"has the id of another prompt, {entry.id[:80]!r}")
                    found.ids.add(entry)
                    bad.good.append(entry)
                    if outcomes is not None:
                        outcomes.append(outcome)
                except StoreError as error:
                    reasons.append(f"at byte {entry.offset}: {error}")
    except OSError as error:
        return False, [f"{error.strerror}"]
    except StoreError as error:  # no file
        return False, [_reason(error, path)]
    if reasons:
        problems.append(f"{len(reasons)} of {len(commit.entries)} records are damaged, first {reasons[0]}")
    return proven, problems


def _leftovers(folder: RunFolder, named: set[str | None]) -> Iterator[Path]:
    tables = {path for name in named if name is not None for path in tables_of(folder, name)}
    yield from folder.root.glob(f".*{TEMPORARY}")
    yield from folder.commits.glob(f".*{TEMPORARY}")
    yield from (path for path in folder.records.glob("*") if path.name not in named)
    yield from (path for path in folder.tables.glob("*") if path not in tables)
    yield from folder.damaged.glob("*")
