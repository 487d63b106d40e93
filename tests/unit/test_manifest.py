"""The manifest of a run: written once, compared on resume, and refused when it cannot be read."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens.scheduler.external_writer import ExternalWriter
from raylens.storage import manifest as manifest_module
from raylens.storage.errors import Fenced, StoreError, UsageError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import FORMAT, Commit, Ledger
from raylens.storage.manifest import Manifest, check_kept, create_or_resume, difference, read_manifest
from tests.builders import commit_outcomes, make_manifest, make_record, make_run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "demo")


def write(folder: RunFolder, manifest: Manifest, **changes: Any) -> None:
    """Put a changed run.json in place."""
    folder.create()
    folder.manifest.write_bytes(msgspec.json.encode({**msgspec.to_builtins(manifest), **changes}))


def test_a_new_run_gets_the_wanted_manifest(folder: RunFolder) -> None:
    """The first call writes run.json, and it reads back as it was given."""
    wanted = make_manifest()
    assert create_or_resume(folder, wanted) == wanted
    assert read_manifest(folder) == wanted


def test_the_same_settings_resume_the_run(folder: RunFolder) -> None:
    """A second call with the same identity keeps the first manifest, with its stream's name."""
    first = create_or_resume(folder, make_manifest())
    assert create_or_resume(folder, make_manifest(created="2030-01-01T00:00:00+00:00")) == first


def test_tuples_of_settings_equal_the_lists_they_become_in_json(folder: RunFolder) -> None:
    """Settings given as tuples resume the run that they began."""
    identity = {"lens": {"taps": ("attn_out", "resid_post"), "top_k": 3}}
    first = create_or_resume(folder, make_manifest(identity=identity))
    assert create_or_resume(folder, make_manifest(identity=identity)).uid == first.uid


def test_changed_settings_are_refused_with_each_difference(folder: RunFolder) -> None:
    """A run with other settings is refused, and the message shows every old and new value."""
    create_or_resume(folder, make_manifest(identity={"lens": {"top_k": 3, "layers": "all"}, "old": {"gone": 1}}))
    commit_outcomes(folder, make_record(0))
    with pytest.raises(UsageError) as refused:
        create_or_resume(folder, make_manifest(identity={"lens": {"top_k": 5, "layers": "all"}, "new": {"come": 2}}))
    text = str(refused.value)
    assert "lens.top_k: 3 -> 5" in text
    assert "old.gone: 1 -> None" in text
    assert "new.come: None -> 2" in text
    assert "layers" not in text
    assert "--name" in text


def test_an_empty_run_takes_other_settings(folder: RunFolder) -> None:
    """With another model goes what was of the first one: its vocabulary and its certificate."""
    create_or_resume(folder, make_manifest(identity={"model": {"name": "one"}}))
    for path in (folder.vocabulary, folder.certificate):
        path.write_bytes(b"of the first model")
    wanted = make_manifest(identity={"model": {"name": "other"}})
    assert create_or_resume(folder, wanted) == wanted
    assert read_manifest(folder) == wanted
    assert not folder.vocabulary.exists()
    assert not folder.certificate.exists()


def test_a_writer_of_former_settings_stores_nothing_under_others(tmp_path: Path) -> None:
    """It is fenced as they are replaced, also where it has looked at run.json for the last time before that."""
    folder, _ = make_run(tmp_path)
    ledger = Ledger(folder)
    for _ in ledger.take_over("0a1b2c3d"):
        pass
    create_or_resume(folder, make_manifest(identity={"lens": {"top_k": 5}}))
    with pytest.raises(Fenced):
        ledger.append(Commit(FORMAT, ledger.next, "0a1b2c3d", None, 0, 0, []))


def test_what_is_stored_while_settings_are_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a writer that took over after the first fence: the former settings are put back, and the others refused."""
    folder, manifest = make_run(tmp_path)

    def take_over(_folder: RunFolder) -> None:
        for _ in Ledger(folder).take_over("0a1b2c3d"):
            pass
        commit_outcomes(folder, make_record(0))

    monkeypatch.setattr(manifest_module, "_forget_model", take_over)
    with pytest.raises(UsageError, match="was made with other settings"):
        create_or_resume(folder, make_manifest(identity={"lens": {"top_k": 5}}))
    assert read_manifest(folder) == manifest


def test_the_names_of_new_folders_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's, that of its runs and the run's own, each by its parent."""
    synced: list[Path] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    RunFolder(tmp_path / "store" / "runs" / "demo").create()
    assert {tmp_path, tmp_path / "store", tmp_path / "store" / "runs", tmp_path / "store" / "runs" / "demo"} <= set(synced)


def test_what_a_writer_stored_last_of_all_is_kept(tmp_path: Path) -> None:
    """One record is enough for a run's settings to be its own."""
    folder, manifest = make_run(tmp_path)
    for _ in Ledger(folder).take_over("0a1b2c3d"):
        pass
    commit_outcomes(folder, make_record(0))
    with pytest.raises(UsageError, match="was made with other settings"):
        create_or_resume(folder, make_manifest(identity={"lens": {"top_k": 5}}))
    assert read_manifest(folder).uid == manifest.uid


def test_nothing_is_left_of_a_model_whose_manifest_was_lost(folder: RunFolder) -> None:
    """Where nothing was stored yet the run begins anew, without the vocabulary and the certificate of before."""
    folder.create()
    for path in (folder.vocabulary, folder.certificate):
        path.write_bytes(b"of another model")
    create_or_resume(folder, make_manifest())
    assert not folder.vocabulary.exists()
    assert not folder.certificate.exists()


def test_a_manifest_that_is_no_file_is_damaged(folder: RunFolder) -> None:
    """A pipe in its place is not waited for."""
    folder.create()
    os.mkfifo(folder.manifest)
    with pytest.raises(StoreError, match=r"run\.json: damaged \(no file\)"):
        read_manifest(folder)


def test_a_file_system_without_locks(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told in one line, with what to do."""

    def refuse(_descriptor: int, _kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"lock: cannot be locked \(No locks available\); keep the store"), folder.lock():
        pass


def test_an_external_writer_is_asked_again(folder: RunFolder) -> None:
    """One that left the run out looks at it anew when the wish has changed."""
    folder.create()
    writer = ExternalWriter(folder)
    os.utime(folder.wants_external_writer, (1, 1))
    writer.ask_again()
    assert folder.wants_external_writer.stat().st_mtime > 1


def test_a_run_that_lost_its_manifest_is_not_taken_for_another(folder: RunFolder) -> None:
    """Records without a manifest may be of any model: what to do is said."""
    create_or_resume(folder, make_manifest())
    check_kept(folder)
    folder.manifest.unlink()
    with pytest.raises(StoreError, match=r"missing.*restore it, or start over with raylens run --fresh"):
        check_kept(folder)


@pytest.mark.parametrize("name", ["lock", "writer.lock"])
def test_a_link_in_the_place_of_a_lock_is_not_followed(folder: RunFolder, tmp_path: Path, name: str) -> None:
    """A store from elsewhere cannot have a file of its reader overwritten."""
    folder.create()
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (folder.root / name).symlink_to(precious)
    with pytest.raises(StoreError, match=f"{name}: "), folder.alone():
        pass
    assert precious.read_text() == "kept"


def test_a_link_in_the_place_of_a_wish_is_not_followed(folder: RunFolder, tmp_path: Path) -> None:
    """Nor is a file made at the end of it; a wish that is made anew is seen by its time."""
    folder.create()
    folder.wants_external_writer.symlink_to(tmp_path / "made")
    with pytest.raises(StoreError, match=r"writer\.external: "):
        ExternalWriter(folder)
    assert not (tmp_path / "made").exists()
    folder.wants_external_writer.unlink()
    ExternalWriter(folder)
    os.utime(folder.wants_external_writer, ns=(0, 0))
    ExternalWriter(folder)
    assert folder.wants_external_writer.stat().st_mtime_ns > 0


def test_a_lock_that_cannot_be_opened_is_one_clear_error(folder: RunFolder) -> None:
    """As where it is another user's, or the disk is full."""
    folder.create()
    (folder.root / "lock").mkdir()
    with pytest.raises(StoreError, match="lock: Is a directory"), folder.lock():
        pass


def test_equal_settings_differ_in_nothing() -> None:
    """No difference is found between equal identities in another order."""
    assert difference({"a": {"x": 1, "y": [1, 2]}}, {"a": {"y": (1, 2), "x": 1}}) == []


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 1, "name": "\xff"}', b"[" * 100_000]
)
def test_a_damaged_manifest_is_one_clear_error(folder: RunFolder, damage: bytes) -> None:
    """Whatever is in run.json, the error is a StoreError that names the file."""
    folder.create()
    folder.manifest.write_bytes(damage)
    with pytest.raises(StoreError, match=r"run\.json: damaged"):
        read_manifest(folder)


def test_a_manifest_with_a_wrong_type_is_damaged(folder: RunFolder) -> None:
    """A field of another type is named in the error."""
    write(folder, make_manifest(), prompts="many")
    with pytest.raises(StoreError, match=r"run\.json: damaged .*prompts"):
        read_manifest(folder)


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": 2, "prompts": {"count": 4}}, {"format": 0}])
def test_another_format_is_refused_by_its_number(folder: RunFolder, changes: dict[str, Any]) -> None:
    """A manifest of another version is refused as such, even if its other fields have changed."""
    write(folder, make_manifest(), **changes)
    with pytest.raises(StoreError, match=rf"run\.json: format {changes['format']}; this raylens reads format 1"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_no_run(folder: RunFolder) -> None:
    """A folder that is not a run is named as such."""
    with pytest.raises(StoreError, match=r"run\.json: .*not a raylens run"):
        read_manifest(folder)


def test_one_driver_holds_a_run(folder: RunFolder) -> None:
    """A second holder on this machine is refused with the first one's process id, until the first lets go."""
    with folder.lock(), pytest.raises(StoreError, match=f"by process {os.getpid()};"), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_lock_of_a_folder_that_was_moved_is_not_held(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """``run --fresh`` may put a new folder in the place of the old one between opening the lock and holding it."""
    folder.create()
    flock = fcntl.flock

    def late(descriptor: int, kind: int) -> None:
        monkeypatch.undo()
        folder.move_aside()
        folder.create()
        (folder.root / "lock").touch()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(StoreError, match="run was moved just now"), folder.lock():
        pass


def test_the_lock_of_a_killed_process_is_free(folder: RunFolder) -> None:
    """A driver that was killed does not keep its run locked."""
    script = (
        "import os, pathlib, sys\n"
        "from raylens.storage.layout import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).lock():\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(folder.root)], check=False)
    assert killed.returncode == -9
    assert (folder.root / "lock").read_text() != f"{os.getpid()}\n"
    with folder.lock():
        assert (folder.root / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    ("sections", "title"),
    [
        ({"lens": {"top_k": 3}}, "made-up"),  # of runs from before there were other lenses
        ({"lens": {"kind": "logit"}}, "made-up"),
        ({"lens": {"kind": "tuned"}}, "made-up, tuned lens"),
        ({"lens": {"kind": "logit"}, "intervention": {"digest": "0"}}, "made-up, edited"),
        ({"lens": {"kind": "linear"}, "intervention": {"digest": "0"}}, "made-up, linear lens, edited"),
    ],
)
def test_titles(sections: dict[str, Any], title: str) -> None:
    """Pictures and pages name what is not as usual: the lens, and that the model was edited."""
    assert make_manifest(identity=sections).title == title
    assert make_manifest(identity=sections, sources={}).title == title.partition(", ")[2]


def test_long_settings_are_cut_in_messages() -> None:
    """An intervention's prompt of any length leaves a message that can be read."""
    (change,) = difference({"intervention": {"1": "x" * 9000}}, {"intervention": {"1": "y" * 9000}})
    assert change == f"intervention.1: {'x' * 300}… -> {'y' * 300}…"
    (change,) = difference({"model": {"weights": "0a" * 32}}, {"model": {"weights": "0b" * 32}})
    assert change == "model.weights: 0a0a0a0a0a0a… -> 0b0b0b0b0b0b…"
