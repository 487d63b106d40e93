"""The benchmark of pictures: the other side draws what ours shows; without seaborn it says so."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from raylens.storage.plots.rank import rank
from tests.benchmarks.bench_pictures import job_of
from tests.benchmarks.processes import ROOT
from tests.pictured import MODEL, fixed


def test_the_same_content() -> None:
    """Rows from the top down, tokens as text, whole percents cut off."""
    record, vocabulary = fixed()
    job = job_of(rank(record, vocabulary, MODEL), vocabulary, record, 300, tight=True)
    assert job["rows"] == ((1, "resid_post"), (0, "resid_post"))
    assert job["texts"] == [[" a", " d"], [" d", " b"]]
    np.testing.assert_array_equal(job["percents"], [[29, 29], [89, 9]])  # of logprobs in float32, a little less than 30 and so on
    assert (job["prompt"], job["predicted"]) == ("·a·b·c", "·a")


def test_without_seaborn(tmp_path: Path) -> None:
    """One line, with what installs it."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_pictures", "--peers", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"install_peers.sh {tmp_path}" in done.stderr
    assert done.stderr.count("\n") == 1
