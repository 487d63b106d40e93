"""A machine on which no temporary folder can be written: one line says so, and what to do."""

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from raylens.scheduler.corpus.spool import Spool
from raylens.storage.database import Database
from raylens.storage.errors import RaylensError
from raylens.storage.server import EmbeddedServer
from tests.command import raylens_command
from tests.queried import write_run

REMEDY = "set TMPDIR to a folder that you can write to"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Of a process that finds none: as root, who may write everywhere, so that it is not asked for."""
    (tmp_path / "sitecustomize.py").write_text("import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/nowhere']\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-", "-m", "demo", "-o", "st"),
        ("run", "--text", "hello", "-m", "demo", "-o", "st"),
        ("fit-lens", "corpus.txt", "-m", "demo", "-o", "lens", "--ray", "local"),
        ("sql", "SELECT 1", "--store", "asked"),
    ],
)
def test_one_line_by_a_command(tmp_path: Path, env: dict[str, str], arguments: tuple[str, ...]) -> None:
    """Whoever asks for the folder first: raylens, or torch as it is imported."""
    write_run(tmp_path / "asked")
    (tmp_path / "corpus.txt").write_text("hello\n")
    done = raylens_command(*arguments, cwd=tmp_path, stdin="hello\n", env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"Error: no temporary file can be made (No usable temporary directory found in ['/nowhere']); {REMEDY}"
    assert not (tmp_path / "lens").exists()


def test_doctor_finds_it(tmp_path: Path, env: dict[str, str]) -> None:
    """And leaves out what cannot be tried without."""
    done = raylens_command("doctor", "-s", str(tmp_path / "st"), env=env)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("PROBLEM  temporary folder  no temporary file can be made")
    assert lines[-1].endswith(f"-> {REMEDY}")


@pytest.mark.parametrize(
    "make",
    [EmbeddedServer, lambda: Database([]), lambda: Spool(io.BytesIO(b"hello"), "stdin")],
    ids=["server", "database", "spool"],
)
@pytest.mark.parametrize(("name", "problem"), [("gone", "No such file or directory"), ("\udcff", "not UTF-8")], ids=ascii)
def test_a_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], object], name: str, problem: str
) -> None:
    """It is named: one that is gone, or of a name that no URL can hold."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with pytest.raises(RaylensError, match=rf"no temporary file can be made \(.*{name}.*: {problem}\); {REMEDY}"):
        make()
