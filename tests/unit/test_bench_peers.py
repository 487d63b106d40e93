"""The benchmark against peers at its smallest, so that it does not rot: the hooks baseline and raylens read the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.benchmarks.corpus import PROMPTS
from tests.tiny import save_tiny_llama
from tests.waiting import HUNG

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers."""
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the benchmark to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_peers", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
    )


def test_hooks_and_raylens_read_the_same(model: Path, tmp_path: Path) -> None:
    """Every place has the same top-1 token, ratios are printed, and a peer that is not installed is named."""
    done = bench("--model", str(model), "--peers", str(tmp_path), "--prompts", "3", "--rounds", "2", "four", "shares")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    tokens = sum(map(len, AutoTokenizer.from_pretrained(model)(PROMPTS[:3]).input_ids))
    compared = {row[0]: row for row in rows if len(row) > 8 and "of" in row[8].split()}
    assert set(compared) == {"raylens, float32 logprobs", "hooks, log_softmax, topk"}
    for row in compared.values():
        assert re.fullmatch(r"\*\*[0-9.]+\*\*", row[6])
        assert row[8] == f"0 of {4 * 2 * tokens}"  # taps, layers
        assert float(row[9]) < 5e-3  # half a unit of float16
    assert {"forward", "product", "epilogue", "rest"} <= {row[0] for row in rows}
