"""What is kept of compiled code for later processes."""

import shutil
import subprocess
import sys
from pathlib import Path

from raylens.workers.kernels import compiled as module

ONE = """
from kernels.compiled import compiled
from kernels.two import two
@compiled()
def one():
    return two()
"""
TWO = """
from kernels.compiled import compiled
@compiled()
def two():
    return {number}
"""
RUN = "from kernels.one import one; print(one(), len(one.stats.cache_hits))"


def test_kept_until_any_kernel_changes(tmp_path: Path) -> None:
    """A second process takes what the first compiled; when a file changes, so does what was compiled from it into another's."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    shutil.copy(module.__file__, folder)
    (folder / "one.py").write_text(ONE)

    def run() -> str:
        # -B: Python's own bytecode of a file as long and of the same second as the one before would be taken for it
        done = subprocess.run([sys.executable, "-B", "-c", RUN], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    (folder / "two.py").write_text(TWO.format(number=1))
    assert [run(), run()] == ["1 0", "1 1"]
    (folder / "two.py").write_text(TWO.format(number=2))
    assert [run(), run()] == ["2 0", "2 1"]
