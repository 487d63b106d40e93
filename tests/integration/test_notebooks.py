"""The notebooks of docs/ run from top to bottom in an empty folder, and are kept as they ran."""

import os
import sys
from pathlib import Path

import nbformat
import platformdirs
import pytest
from nbclient import NotebookClient

from tests.waiting import HUNG

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    """Which a reader is told of."""
    assert [path.stem for path in NOTEBOOKS] == ["query", "quickstart"]
    readme = (DOCS.parent / "README.md").read_text()
    assert all(f"docs/{path.name}" in readme for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("shared_ray")
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell, without an error."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(platformdirs.user_cache_path()))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=HUNG, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_ran(path: Path) -> None:
    """All cells in order, with what they showed, and no path of the machine."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert str(Path.home()) not in path.read_text()
