"""The Triton read-out on a GPU at the size of Llama-3.1-8B's head: ``python -m tests.benchmarks.bench_lens_cuda``.

It first compares a few rows with float64 and ends with code 1 where they differ; then it times, on random data and by CUDA
events, the median of several rounds of

- the read-out (two products of bfloat16, all statistics, nothing materialised),
- one and two bare products of torch (cuBLAS), which no read-out of one and two terms can beat by much,
- the usual way: one bfloat16 product, float32 logits in memory, log_softmax, topk.

The rate counts the products done, 2 N D V operations each; the share is relative to the single bare product's rate. Without a
GPU it ends with code 2.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = (1024, 8192)
WIDTH, VOCAB, K = 4096, 128_256, 10
WARMUP, RUNS = 5, 15
CHECKED = 24
#: Largest difference from float64 of a logprob, for logits with a spread of about 3: one term would be off by about 1e-2.
TOLERANCE = 2e-4

Timer = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Way:
    """A way to be timed: its name, what runs it and how many products that does."""

    name: str
    run: Callable[[], Any]
    products: int


def events(run: Callable[[], Any]) -> float:
    """Milliseconds of one run."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def inputs(rows: int, width: int, vocab: int, device: str) -> tuple[Tensor, Tensor]:
    """Random rows [N, D] float32 and weight [V, D] bfloat16."""
    generator = torch.Generator(device).manual_seed(rows)
    weight = torch.empty(vocab, width, dtype=torch.bfloat16, device=device).normal_(generator=generator).mul_(3 / width**0.5)
    return torch.randn(rows, width, generator=generator, device=device), weight


def wrong(rows: Tensor, weight: Tensor, k: int) -> str:
    """What differs from float64 in rows of the first and last tiles; empty if nothing does."""
    from raylens.workers.kernels.triton_readout import AfterHead, readout

    chosen = torch.arange(len(rows), device=rows.device)
    chosen = torch.cat([chosen[: CHECKED // 2], chosen[-CHECKED // 2 :]]).unique()
    found = readout(rows, weight, None, AfterHead(), k)
    exact = torch.log_softmax(torch.cat([rows[chosen].double() @ part.double().T for part in weight.split(8192)], dim=1), dim=1)
    best = exact.topk(k).values
    ids_off = float((exact.gather(1, found.ids[chosen]) - best).abs().max())
    logprobs_off = float((found.logprobs[chosen] - best).abs().max())
    entropy_off = float((found.entropy[chosen] + (exact.exp() * exact).sum(dim=1)).abs().max())
    print(
        f"  against float64, {len(chosen)} rows, off by: id {ids_off:.1e}, logprob {logprobs_off:.1e}, entropy {entropy_off:.1e}"
    )
    if not bool(found.logsumexp.isfinite().all()):
        return "a logsumexp is not finite"
    off = max(ids_off, logprobs_off, entropy_off / 10)
    return "" if off <= TOLERANCE else f"off by {off:.1e}, allowed {TOLERANCE:.0e}"


def ways(rows: Tensor, weight: Tensor, k: int) -> list[Way]:
    """The bare product first: its rate is what the others are compared with."""
    from raylens.workers.kernels.triton_readout import AfterHead, readout

    short = rows.to(torch.bfloat16)
    rest = (rows - short.float()).to(torch.bfloat16)
    out = torch.empty(len(rows), len(weight), dtype=torch.bfloat16, device=rows.device)

    def two() -> None:
        torch.mm(short, weight.T, out=out)
        torch.mm(rest, weight.T, out=out)

    def usual() -> Any:
        return torch.log_softmax((short @ weight.T).float(), dim=1).topk(k, dim=1)

    return [
        Way("one torch.mm, bf16", lambda: torch.mm(short, weight.T, out=out), 1),
        Way("two torch.mm, bf16", two, 2),
        Way(f"read-out, k={k}", lambda: readout(rows, weight, None, AfterHead(), k), 2),
        Way("read-out, k=1", lambda: readout(rows, weight, None, AfterHead(), 1), 2),
        Way(f"mm, log_softmax, topk {k}", usual, 1),
    ]


def compare(rows: Tensor, weight: Tensor, k: int, timer: Timer) -> None:
    """Print a table of all ways, which take turns: a GPU that becomes warm slows all of them down alike."""
    all_ways = ways(rows, weight, k)
    times = [[timer(way.run) for way in all_ways] for _ in range(WARMUP + RUNS)][WARMUP:]
    bare = 0.0
    print(f"  {'':28}{'median ms':>10}{'min':>9}{'max':>9}{'TFLOP/s':>9}{'of mm':>7}")
    for way, taken in zip(all_ways, zip(*times, strict=True), strict=True):
        median = statistics.median(taken)
        rate = way.products * 2 * rows.numel() * len(weight) / median / 1e9
        bare = bare or rate
        print(f"  {way.name:28}{median:10.3f}{min(taken):9.3f}{max(taken):9.3f}{rate:9.1f}{rate / bare:7.0%}")


def machine() -> str:
    """The device, and its clocks and temperature where nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu", "--format=csv,noheader"]
    try:
        clocks = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        clocks = "clocks not readable"
    return f"{torch.cuda.get_device_name()}; SM clock, memory clock, power, temperature: {clocks}"


def refusal() -> str:
    """Why it cannot run here; empty if it can."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU here, nothing was measured"
    try:
        from raylens.workers.kernels import triton_readout
    except ImportError:
        return "triton is not installed, nothing was measured"
    return "TRITON_INTERPRET is set, nothing was measured" if triton_readout._interpreted() else ""


def main() -> int:
    """0 done, 1 wrong results, 2 not possible here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--k", type=int, default=K)
    options = parser.parse_args()
    if reason := refusal():
        print(f"bench_lens_cuda: {reason}", file=sys.stderr)
        return 2
    import triton

    from raylens.workers.kernels.triton_readout import _tuned

    print(f"{machine()}\ntorch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton.__version__}")
    for count in options.rows:
        print(f"N={count} D={options.width} V={options.vocab} k={options.k}, bfloat16 weight")
        rows, weight = inputs(count, options.width, options.vocab, "cuda")
        if problem := wrong(rows, weight, options.k):
            print(f"bench_lens_cuda: {problem}", file=sys.stderr)
            return 1
        compare(rows, weight, options.k, events)
        chosen = getattr(_tuned(options.k > 16), "best_config", "none, too small")
        print(f"  block shape chosen: {chosen}\n  after: {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
