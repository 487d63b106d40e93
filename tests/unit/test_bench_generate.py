"""The benchmark of generation at its smallest, so that it does not rot: three ways to do the seed's job read the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.peers.seed import NEW_TOKENS
from tests.tiny import save_tiny_llama
from tests.waiting import HUNG

ROOT = Path(__file__).parents[2]


def test_three_ways_read_the_same(tmp_path: Path) -> None:
    """Every step has the same best token at each of four taps and two layers; ratios and shares are printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_generate", "--model", str(save_tiny_llama(tmp_path)), "--rounds", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    compared = {row[0]: row for row in rows if len(row) > 8 and "of" in row[8].split()}
    assert set(compared) == {"plain hooks with a cache", "LogitLens4LLMs, made again"}
    for row in compared.values():
        assert re.fullmatch(r"\*\*[0-9.]+\*\*", row[6])
        assert row[8] == f"0 of {4 * 2 * 2 * NEW_TOKENS}"  # taps, layers, prompts
    assert re.search(r"Of raylens' own time \d+% is the lens, [0-9.]+% sampling", done.stdout)
