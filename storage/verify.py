"""Checks every byte of a run against its ledger; changes nothing (docs/FORMAT.md, section What verify finds)."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec
import orjson

from raylens.storage.durable import TEMPORARY
from raylens.storage.errors import OtherFormat, StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Entry, Indexes, Ledger
from raylens.storage.manifest import Manifest, read_manifest
from raylens.storage.quarantine import Quarantine
from raylens.storage.segments import open_frame, segment_number, segment_path
from raylens.storage.vocabulary import read_vocabulary

#: Commits that may be missing before another; a file further away does not belong to the ledger.
MAX_GAP = 10_000


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
        run: the folder's name.
        manifest: None if run.json is damaged.
        damage: every damaged file.
        leftovers: files that nothing names.
        bad: the commits that a repair would replace.
        untouchable: why a repair must leave the run alone.
        done: prompts of the commits that are whole.
        commits, records, failures, size: what the ledger names and was found good; bytes of segments read.
        lost: prompts that the ledger names and whose records cannot be read.
        quarantined: entries of the stream that were refused.
    """

    run: str
    manifest: Manifest | None = None
    damage: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    bad: list[BadCommit] = field(default_factory=list)
    untouchable: list[str] = field(default_factory=list)
    done: Indexes = field(default_factory=Indexes)
    commits: int = 0
    records: int = 0
    failures: int = 0
    lost: int = 0
    size: int = 0
    quarantined: int = 0


def examine(folder: RunFolder) -> Findings:
    """Read all of a run."""
    found = Findings(folder.root.name)
    ledger = Ledger(folder)
    numbers = ledger.numbers()
    _examine_manifest(folder, found, bool(numbers))
    named: set[str | None] = set()
    for n in _each_number(numbers, ledger, found):
        commit = _read_commit(folder, ledger, n, found)
        if commit is not None:
            named.add(commit.segment)
            _examine_commit(folder, commit, found)
    _examine_vocabulary(folder, found, bool(numbers))
    _examine_certificate(folder, found)
    found.leftovers = sorted(_leftovers(folder, named))
    found.quarantined = len(Quarantine(folder).entries())
    return found


def _reason(error: StoreError, path: Path) -> str:
    return str(error).removeprefix(str(path)).lstrip(": ")


def _leave_alone(found: Findings, path: Path, problem: str) -> None:
    found.damage.append(Damage(_name(path), problem))
    found.untouchable.append(f"{_name(path)}: {problem}")


def _examine_manifest(folder: RunFolder, found: Findings, begun: bool) -> None:
    if not begun and not folder.manifest.exists():  # a driver was killed before it wrote anything
        return
    try:
        found.manifest = read_manifest(folder)
    except StoreError as error:
        problem = (
            f"{_reason(error, folder.manifest)}; without it nothing says what the records are of: restore it, or run --fresh"
        )
        found.damage.append(Damage(folder.manifest.name, problem))
        found.untouchable.append(f"{folder.manifest.name}: {problem}")


def _examine_vocabulary(folder: RunFolder, found: Findings, begun: bool) -> None:
    if not begun and not folder.vocabulary.exists():
        return
    try:
        size = len(read_vocabulary(folder.vocabulary))
        if found.manifest is not None and size != found.manifest.vocabulary_size:
            raise StoreError(f"holds {size} tokens, run.json says {found.manifest.vocabulary_size}")
    except StoreError as error:
        remedy = "the raylens run of it writes it anew once it is away"
        found.damage.append(Damage(folder.vocabulary.name, f"{_reason(error, folder.vocabulary)}; {remedy}"))


def _examine_certificate(folder: RunFolder, found: Findings) -> None:
    if not folder.certificate.exists():
        return
    try:
        if not isinstance(orjson.loads(folder.certificate.read_bytes()), dict):
            raise ValueError("not an object")
    except (ValueError, OSError) as error:
        found.damage.append(Damage(folder.certificate.name, f"damaged ({error})"))


def _each_number(numbers: list[int], ledger: Ledger, found: Findings) -> Iterator[int]:
    """The numbers a whole ledger would have: those of the files, and those that are missing between them."""
    before = -1
    for number in numbers:
        if number - before > MAX_GAP:
            _leave_alone(found, ledger.path(number), f"{number - before - 1} commits are missing before it; move it away")
            return
        yield from range(before + 1, number + 1)
        before = number


def _read_commit(folder: RunFolder, ledger: Ledger, n: int, found: Findings) -> Commit | None:
    """A commit that can be read and names a segment of its own, or none; else it is noted as bad."""
    path = ledger.path(n)
    try:
        commit = ledger.read(n)
        if commit is None:
            raise StoreError("missing, though later commits exist")
        if commit.segment is not None:
            segment_path(folder, commit)
            if segment_number(commit.segment) != n or commit.writer not in commit.segment:
                raise StoreError(f"names {commit.segment}, the segment of another commit")
    except OtherFormat as error:
        _leave_alone(found, path, f"{_reason(error, path)}; use the raylens that wrote it")
        return None
    except StoreError as error:
        found.damage.append(Damage(_name(path), _reason(error, path)))
        found.bad.append(BadCommit(n))
        return None
    found.commits += 1
    return commit


def _examine_commit(folder: RunFolder, commit: Commit, found: Findings) -> None:
    if commit.segment is None:
        return
    bad = BadCommit(commit.n, commit)
    wrong = _wrong_entries(commit, found)
    if wrong:
        found.damage.append(Damage(_name(folder.commits / f"{commit.n:09d}.json"), wrong))
    path = segment_path(folder, commit)
    bad.proven, problems = _examine_segment(path, commit, bad.good)
    if problems:
        found.damage.append(Damage(_name(path), "; ".join(problems)))
    if wrong or problems:
        found.bad.append(bad)
        found.lost += len(commit.entries) - len(bad.good)
    else:
        for entry in commit.entries:
            found.done.add(entry.index)
    found.records += sum(entry.failure is None for entry in bad.good)
    found.failures += sum(entry.failure is not None for entry in bad.good)
    found.size += commit.bytes


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


def _examine_segment(path: Path, commit: Commit, good: list[Entry]) -> tuple[bool, list[str]]:
    """Whether size and crc32 are those of the commit, and every problem; the entries that hold go into ``good``."""
    problems = []
    try:
        with path.open("rb") as file:
            size, crc32 = 0, 0
            while block := file.read(1 << 20):
                size, crc32 = size + len(block), zlib.crc32(block, crc32)
            if size != commit.bytes:
                problems.append(f"{size} bytes, its commit says {commit.bytes}")
            elif crc32 != commit.crc32:
                problems.append("crc32 is not that of its commit")
            proven, reasons = not problems, []
            for entry in commit.entries:
                try:
                    if entry.offset + entry.length > size:
                        raise StoreError("beyond the end of the file")
                    file.seek(entry.offset)
                    open_frame(file.read(entry.length), entry)
                    good.append(entry)
                except StoreError as error:
                    reasons.append(f"at byte {entry.offset}: {error}")
    except OSError as error:
        return False, [f"{error.strerror}"]
    if reasons:
        problems.append(f"{len(reasons)} of {len(commit.entries)} records are damaged, first {reasons[0]}")
    return proven, problems


def _leftovers(folder: RunFolder, named: set[str | None]) -> Iterator[str]:
    for path in folder.root.glob(f".*{TEMPORARY}"):
        yield path.name
    for path in folder.commits.glob(f".*{TEMPORARY}"):
        yield _name(path)
    for path in folder.records.glob("*"):
        if path.name not in named:
            yield _name(path)
    for path in folder.damaged.glob("*"):
        yield _name(path)


def _name(path: Path) -> str:
    """A file of a run, from the run's folder."""
    return f"{path.parent.name}/{path.name}"
