"""Every command and every Python line of the README, and of the guides beside it, runs, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

ROOT = Path(__file__).parents[2]
#: In the order in which one reads on: a guide may ask a run that the README made.
GUIDES = (
    "README.md",
    "docs/QUERIES.md",
    "docs/PICTURES.md",
    "docs/EXPORTS.md",
    "docs/PAGES.md",
    "docs/LENSES.md",
    "docs/GENERATION.md",
    "docs/INTERVENTIONS.md",
    "docs/METRICS.md",
    "docs/servers.md",
)
BLOCKS = [
    (guide, *block)
    for guide in GUIDES
    for block in re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / guide).read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stranger")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("language", "source"),
    [(language, source) for _, language, source in BLOCKS],
    ids=[f"{Path(guide).stem}-{n}-{language}" for n, (guide, language, _) in enumerate(BLOCKS)],
)
def test_block_runs(folder: Path, language: str, source: str) -> None:
    """The block ends without error; the blocks share a folder, as a reader's would."""
    command = ["bash", "-euo", "pipefail", "-c", source] if language == "sh" else [sys.executable, "-c", source]
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "RAYLENS": str(ROOT),  # the checkout of which a guide takes files
        "HOME": str(folder),  # without the token that another Ray may have left in the user's home
        "XDG_CACHE_HOME": str(platformdirs.user_cache_path()),  # but with the converted demo model
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{source}\n{done.stdout}\n{done.stderr}"


def test_there_are_blocks() -> None:
    """The pattern above finds the blocks of each."""
    for guide in GUIDES:
        languages = [language for name, language, _ in BLOCKS if name == guide]
        assert "sh" in languages, guide


def test_set_up_commands_are_make_targets() -> None:
    """The README's two set-up commands exist; CI runs them themselves."""
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in (ROOT / "README.md").read_text()
        assert f"\n{target}:" in makefile
