"""The short form of ``make soak``: each kind of fault once, from a fixed seed, in five runs that may go side by side."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.faults import FAULTS

ROOT = Path(__file__).parent.parent.parent
SEED = 1
PROMPTS = 60
RUNS = 5


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(RUNS))
def test_each_fault_once_and_nothing_is_lost_doubled_or_changed(part: int) -> None:
    """In a process of its own, as the Ray that it breaks is no other test's. Its figures are in the message if it fails."""
    kinds = list(FAULTS)[part::RUNS]
    command = [sys.executable, "-m", "tests.kill.soak", "--seed", str(SEED), "--prompts", str(PROMPTS)]
    command += ["--kinds", f"{part}:{RUNS}", "--kills", str(len(kinds))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=800, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "missing 0, doubled 0, differing 0, keys left 0" in done.stdout
    assert all(f"{fault.__name__.replace('_', ' ')} 1" in done.stdout for fault in kinds)
