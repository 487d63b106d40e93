"""Every command and every Python line of the README, and of the guides beside it, runs, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from tests.waiting import HUNG

ROOT = Path(__file__).parents[2]
#: What one reads on in one folder: a guide may ask a run that the one before it made.
READINGS = (
    ("README.md", "docs/EXPORTS.md", "docs/PAGES.md"),
    ("docs/QUERIES.md", "docs/PICTURES.md"),
    ("docs/LENSES.md",),
    ("docs/GENERATION.md",),
    ("docs/INTERVENTIONS.md",),
    ("docs/METRICS.md",),
    ("docs/ATTRIBUTION.md",),
    ("docs/servers.md",),
)
#: Readings whose first block starts Ray itself, as a reader's would; the others join one.
STARTING_RAY = ("README.md", "docs/servers.md")
#: What ends every Ray of the machine, those of other tests too.
ENDS_ALL = "ray stop"


def blocks(guide: str) -> list[tuple[str, str]]:
    """Language and source of each block of a guide."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / guide).read_text(), re.DOTALL | re.MULTILINE)
    assert "sh" in [language for language, _ in found], guide
    return found


def run_block(folder: Path, language: str, source: str, **more: str) -> None:
    """The block ends without error, in such an environment."""
    command = ["bash", "-euo", "pipefail", "-c", source] if language == "sh" else [sys.executable, "-c", source]
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "RAYLENS": str(ROOT),  # the checkout of which a guide takes files
        "HOME": str(folder),  # without the token that another Ray may have left in the user's home
        "XDG_CACHE_HOME": str(platformdirs.user_cache_path()),  # but with the converted demo model
        **more,
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, f"{source}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("guides", READINGS, ids=lambda guides: "+".join(Path(guide).stem for guide in guides))
def test_blocks_run(guides: tuple[str, ...], tmp_path: Path, ray_address: str) -> None:
    """The blocks share a folder, as a reader's would."""
    read = [block for guide in guides for block in blocks(guide) if ENDS_ALL not in block[1]]
    for number, (language, source) in enumerate(read):
        own = number == 0 and guides[0] in STARTING_RAY
        run_block(tmp_path, language, source, **({} if own else {"RAY_ADDRESS": ray_address}))


@pytest.mark.alone
def test_the_block_that_ends_every_ray_runs(tmp_path: Path) -> None:
    """The README's cluster, started and stopped."""
    (block,) = [block for guides in READINGS for guide in guides for block in blocks(guide) if ENDS_ALL in block[1]]
    run_block(tmp_path, *block)


def test_set_up_commands_are_make_targets() -> None:
    """The README's two set-up commands exist; CI runs them themselves."""
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in (ROOT / "README.md").read_text()
        assert f"\n{target}:" in makefile
