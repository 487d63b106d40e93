"""The short form of ``make soak``: from a fixed seed, once each kind of fault that no other test injects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.faults import FAULTS

ROOT = Path(__file__).parent.parent.parent
SEED = 1
PROMPTS = 90  # so many that a slow machine is not through them before the last fault
#: test_kills.py kills actor, writer, server and driver, and test_server.py freezes the server.
ELSEWHERE = {"kill_actor", "kill_writer", "restart_server", "freeze_server", "kill_driver"}
KINDS = [fault.__name__ for fault in FAULTS if fault.__name__ not in ELSEWHERE]


@pytest.mark.timeout(2400)
def test_each_fault_once_and_nothing_is_lost_doubled_or_changed() -> None:
    """In a process of its own, as the Ray that it breaks is no other test's. Its figures are in the message if it fails."""
    command = [sys.executable, "-m", "tests.kill.soak", "--seed", str(SEED), "--prompts", str(PROMPTS)]
    command += ["--kills", str(len(KINDS)), "--kinds", *KINDS]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "missing 0, doubled 0, differing 0, keys left 0" in done.stdout
    assert all(f"{name.replace('_', ' ')} 1" in done.stdout for name in KINDS)
