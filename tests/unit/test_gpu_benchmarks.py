"""GPU benchmarks where there is no GPU: they say so, and the read-out's checks and table work by the interpreter."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import bench_lens_cuda as bench

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["bench_lens_cuda", "bench_model_cuda"])
def test_without_a_gpu_it_says_so(name: str) -> None:
    """Exit code 2, one line, no figure."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}: no NVIDIA GPU here, nothing was measured\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU run the benchmark itself")
def test_checks_and_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Right results pass, wrong ones are named, and every way has its line."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed; on Linux: pip install triton")
    from raylens.workers.kernels import triton_readout

    def once(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    rows, weight = bench.inputs(20, 32, 100, "cpu")
    assert bench.wrong(rows, weight, 5) == ""
    monkeypatch.setattr(bench, "WARMUP", 0)
    monkeypatch.setattr(bench, "RUNS", 1)
    bench.compare(rows, weight, 5, once)
    assert len(capsys.readouterr().out.splitlines()) == 7
    read = triton_readout.readout
    monkeypatch.setattr(triton_readout, "readout", lambda rows, *others: read(rows * 1.001, *others))
    assert bench.wrong(rows, weight, 5).startswith("off by")
