"""Memory that one prompt takes above the loaded model: ``python -m tests.benchmarks.bench_peak``, some minutes on two cores.

Four taps, every layer and position, k=10, SmolLM2-135M in float32; each line in a process of its own.
"""

import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import torch

from raylens.storage.record import Prompt
from raylens.workers.settings import InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker

LENGTHS = (512, 2048, 4096)
STATS = ("", "kl,next_logprob,next_rank")
_MIB = 1 << 20


def growth(work: Callable[[], object]) -> float:
    """MiB by which the process grows while it works, at most."""
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return (highest - before) / _MIB


def one(length: int, stats: str) -> None:
    """Print a line of the table."""
    ids = [number * 7919 % 49_000 + 5 for number in range(length)]
    chosen = tuple(stats.split(",")) if stats else ()
    settings = WorkerSettings(
        ModelSettings("demo", dtype="float32"),
        LensSettings(10, positions="all", stats=chosen),
        InputSettings(batch_tokens=length),
    )
    worker = Worker(settings)
    copy = worker._lens._adapter.projection.unembedding.laid_out
    laid_out = copy.nbytes / _MIB if copy is not None else 0.0
    list(worker.run([Prompt(0, "0", token_ids=ids[:64])]))  # compiles, and lets the allocator grow
    batch = torch.tensor([ids])
    with torch.inference_mode():
        forward = growth(
            lambda: worker._lens._adapter.trunk(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)
        )
    lens = growth(lambda: list(worker.run([Prompt(0, "0", token_ids=ids)])))
    print(f"| {length} | {stats or 'none'} | {forward:.0f} | {lens:.0f} | {laid_out:.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        one(int(sys.argv[1]), sys.argv[2])
        return
    print("| tokens | statistics | forward pass alone, MiB | with the lens, MiB | unembedding laid out for products, MiB |")
    print("|---|---|---|---|---|", flush=True)
    for length in LENGTHS:
        for stats in STATS:
            subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_peak", str(length), stats], check=True)


if __name__ == "__main__":
    main()
