"""The short form of ``make soak``: each kind of fault once, from a fixed seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.faults import FAULTS

ROOT = Path(__file__).parent.parent.parent
SEED = 1


@pytest.mark.timeout(900)
def test_each_fault_once_and_nothing_is_lost_doubled_or_changed() -> None:
    """In a process of its own, as the Ray that it breaks is no other test's. Its figures are in the message if it fails."""
    command = [sys.executable, "-m", "tests.kill.soak", "--seed", str(SEED), "--kills", str(len(FAULTS)), "--prompts", "120"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=800, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "missing 0, doubled 0, differing 0, keys left 0" in done.stdout
    assert all(f"{fault.__name__.replace('_', ' ')} 1" in done.stdout for fault in FAULTS)
