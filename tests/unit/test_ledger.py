"""The ledger: commits appear once, in order, and two writers never share a number."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage import durable as durable_module
from raylens.storage.durable import create_file, write_file
from raylens.storage.errors import Fenced, StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import FORMAT, Commit, Entry, Indexes, Ledger
from tests.builders import make_run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path)[0]


def make_commit(n: int, *indexes: int, writer: str = "0" * 8) -> Commit:
    """Commit ``n`` of records that are in no segment."""
    entries = [Entry(index, f"prompt-{index}", 10 * place, 10, 4, None) for place, index in enumerate(indexes)]
    return Commit(FORMAT, n, writer, f"{n:09d}-{writer}.jsonl.zst" if indexes else None, 10 * len(indexes), 0, entries)


def commit_file(folder: RunFolder, n: int) -> Path:
    return folder.commits / f"{n:09d}.json"


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Results, or exceptions, of calls that all begin at the same time."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        barrier.wait()
        try:
            results[place] = calls[place]()
        except Exception as error:  # noqa: BLE001  handed to the test
            results[place] = error

    threads = [threading.Thread(target=run, args=[place]) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_create_file_never_replaces(tmp_path: Path) -> None:
    """A name that is taken keeps its contents, and no temporary file stays."""
    path = tmp_path / "commit"
    assert create_file(path, b"first")
    assert not create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [child.name for child in tmp_path.iterdir()] == ["commit"]


def test_create_file_over_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answer to a link that was made is lost, the server is asked again, and says that the name is taken."""
    path, link = tmp_path / "commit", os.link

    def asked_again(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", asked_again)
    assert create_file(path, b"first")
    assert not create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [child.name for child in tmp_path.iterdir()] == ["commit"]


def test_write_file_replaces_whole(tmp_path: Path) -> None:
    """A replaced file has all of the new contents, and no temporary file stays."""
    path = tmp_path / "certificate"
    write_file(path, b"a longer text")
    write_file(path, b"short")
    assert path.read_bytes() == b"short"
    assert [child.name for child in tmp_path.iterdir()] == ["certificate"]


def test_create_file_has_one_winner(tmp_path: Path) -> None:
    """Of eight threads that create the same name, one succeeds, and the file is its own."""
    for attempt in range(20):
        path = tmp_path / str(attempt)
        won = at_once(*[lambda who=who, path=path: create_file(path, b"%d" % who * 1000) for who in range(8)])
        assert won.count(True) == 1
        assert won.count(False) == 7
        assert path.read_bytes() == b"%d" % won.index(True) * 1000


def test_what_is_appended_is_read(folder: RunFolder) -> None:
    """Another ledger of the run sees every commit, in order, and once."""
    ours, theirs = Ledger(folder), Ledger(folder)
    commits = [make_commit(0), make_commit(1, 3, 1), make_commit(2, 0)]
    for commit in commits[:2]:
        ours.append(commit)
    assert theirs.refresh() == commits[:2]
    ours.append(commits[2])
    assert theirs.refresh() == commits[2:]
    assert theirs.refresh() == []
    for ledger in (ours, theirs):
        assert (ledger.next, ledger.count) == (3, 3)
        assert [index in ledger for index in (-1, 0, 1, 2, 3, 4, 1 << 40)] == [False, True, True, False, True, False, False]


@given(st.lists(st.integers(0, 3000) | st.integers(0, 40)))
def test_indexes_are_a_set(indexes: list[int]) -> None:
    """Each is in once it was put in, and no other is."""
    found = Indexes()
    for index in indexes:
        found.add(index)
    assert found.count == len(set(indexes))
    assert {index for index in range(-9, 3100) if index in found} == set(indexes)


def test_a_prompt_counts_once(folder: RunFolder) -> None:
    """The count is of prompts, not of entries."""
    ledger = Ledger(folder)
    ledger.append(make_commit(0, 5, 6))
    ledger.append(make_commit(1, 6, 7))
    assert ledger.count == 3


def test_the_loser_of_a_race_is_fenced(folder: RunFolder) -> None:
    """Of two ledgers that append the same number at once, exactly one succeeds and the other gets Fenced."""
    for n in range(20):
        first, second = Ledger(folder), Ledger(folder)
        first.refresh()
        second.refresh()
        commits = [make_commit(n, 2 * n, writer="a" * 8), make_commit(n, 2 * n + 1, writer="b" * 8)]
        results = at_once(lambda c=commits[0], l=first: l.append(c), lambda c=commits[1], l=second: l.append(c))  # noqa: E741
        assert sorted(type(result).__name__ for result in results) == ["Fenced", "NoneType"]
        reader = Ledger(folder)
        winner = commits[results.index(None)]
        assert reader.refresh()[n] == winner
        loser = (first, second)[1 - results.index(None)]
        assert loser.next == n, "a fenced ledger has learned nothing"


def test_a_commit_that_could_not_be_read_is_not_made(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file over the limit nothing is written, and its number stays free; one at the limit is read."""
    ledger, commit = Ledger(folder), make_commit(0, *range(20))
    size = len(msgspec.json.encode(commit))
    monkeypatch.setattr(durable_module, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(StoreError, match=rf"000000000\.json: not written \({size} bytes, more than"):
        ledger.append(commit)
    assert list(folder.commits.iterdir()) == []
    assert (ledger.next, ledger.count) == (0, 0)
    monkeypatch.setattr(durable_module, "MAX_FILE_BYTES", size)
    ledger.append(commit)
    assert Ledger(folder).refresh() == [commit]


def test_a_fenced_ledger_catches_up(folder: RunFolder) -> None:
    """After Fenced, reading on gives the winner's commit."""
    ours, theirs = Ledger(folder), Ledger(folder)
    theirs.append(make_commit(0, 1))
    with pytest.raises(Fenced, match="took over at commit 0"):
        ours.append(make_commit(0, 2))
    assert 2 not in ours
    assert ours.refresh() == [make_commit(0, 1)]
    ours.append(make_commit(1, 2))
    assert ours.count == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1, "n": 0}',
        b'{"format": 1, "n": 0, "writer": "\xff"}',
        b"\x00" * 64,
        b"[" * 100_000,
        b'{"format": 1, "writer": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_commit_is_one_clear_error(folder: RunFolder, damage: bytes) -> None:
    """Whatever is in a commit file, the error is a StoreError that names the file."""
    Ledger(folder).append(make_commit(0, 1))
    commit_file(folder, 1).write_bytes(damage)
    ledger = Ledger(folder)
    with pytest.raises(StoreError, match=r"commits/000000001\.json: damaged"):
        ledger.refresh()
    assert 1 in ledger, "what came before it is known"


@pytest.mark.parametrize("cut", range(0, 200, 23))
def test_a_commit_cut_short_is_damaged(folder: RunFolder, cut: int) -> None:
    """No beginning of a commit file passes for a commit."""
    Ledger(folder).append(make_commit(0, 1, 2, 3))
    path = commit_file(folder, 0)
    data = path.read_bytes()
    assert cut < len(data)
    path.write_bytes(data[:cut])
    with pytest.raises(StoreError, match=r"000000000\.json: damaged"):
        Ledger(folder).refresh()


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 4},
        {"segment": None},
        {"entries": [[-1, "p", 0, 10, 4, None]]},
        {"entries": [[1 << 40, "p", 0, 10, 4, None]]},
        {"entries": [[0, "p", -5, 10, 4, None]]},
        {"entries": [[0, "p", 0, -1, 4, None]]},
        {"entries": [[0, "p", 0, 10]]},
        {"entries": [[0, 7, 0, 10, 4, None]]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_numbers_that_cannot_be_are_damage(folder: RunFolder, changes: dict[str, Any]) -> None:
    """A commit that parses but says the impossible is refused before anything is allocated or read by it."""
    fields = {**msgspec.to_builtins(make_commit(0, 1)), **changes}
    commit_file(folder, 0).write_bytes(msgspec.json.encode(fields))
    with pytest.raises(StoreError, match=r"000000000\.json: damaged"):
        Ledger(folder).refresh()


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": 2, "entries": {"as": "columns"}}])
def test_a_commit_of_another_format_is_refused_by_its_number(folder: RunFolder, changes: dict[str, Any]) -> None:
    """A commit of a future version is refused as such, even if its other fields have changed."""
    fields = {**msgspec.to_builtins(make_commit(0, 1)), **changes}
    commit_file(folder, 0).write_bytes(msgspec.json.encode(fields))
    with pytest.raises(StoreError, match=r"000000000\.json: format 2; this raylens reads format 1"):
        Ledger(folder).refresh()


def test_a_commit_that_cannot_be_read_is_one_clear_error(folder: RunFolder) -> None:
    """An error of the file system names the file."""
    commit_file(folder, 0).mkdir()
    with pytest.raises(StoreError, match=r"000000000\.json: Is a directory"):
        Ledger(folder).refresh()
