"""Where raylens' time goes: ``python -m tests.benchmarks.shares FOLDER PROMPTS``, run by bench_peers.

- forward: the model's body alone, no hooks, on the very batches of the run.
- product: time inside the products with the unembedding during the run.
- epilogue: time inside the compiled kernels that read the products out.
- rest: what is left of the run: tokenizing, hooks and their copies, norms, sums, waiting for the slower thread, records.

Time inside is measured by a clock around each call in the thread that makes it; threads at work side by side count as one.
"""

import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from raylens.storage.record import Prompt
from raylens.workers.batching import Batch
from raylens.workers.kernels import epilogue, panels, tiles, walk
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.benchmarks.corpus import PROMPTS
from tests.benchmarks.rounds import FOUR

ROUNDS = 3
#: Of each share: the functions inside which time counts.
INSIDE: dict[str, list[tuple[Any, str]]] = {
    "product": [(torch, "mm"), (panels.KERNEL, "multiply"), (tiles.KERNEL, "multiply")],
    "epilogue": [(walk, "walk_block"), (epilogue, "take_block")],
}

_Clock = dict[int, float]


@contextmanager
def clocks() -> Iterator[dict[str, _Clock]]:
    """While open, counts seconds inside the functions by share and thread."""
    spent: dict[str, _Clock] = {name: defaultdict(float) for name in INSIDE}
    with ExitStack() as stack:
        for name, functions in INSIDE.items():
            for module, function in functions:
                stack.enter_context(patch.object(module, function, _timed(getattr(module, function), spent[name])))
        yield spent


def _timed(function: Callable[..., Any], clock: _Clock) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            clock[threading.get_ident()] += time.perf_counter() - start

    return run


def _wall(clock: _Clock) -> float:
    """Seconds of the run that went by inside: of the caller's thread, and of the pool's on average."""
    pool = [seconds for thread, seconds in clock.items() if thread != threading.get_ident()]
    return clock.get(threading.get_ident(), 0.0) + (statistics.mean(pool) if pool else 0.0)


def measure(worker: Worker, prompts: list[Prompt]) -> dict[str, float]:
    """Seconds of one run by share."""
    seen: list[Batch] = []
    lens = worker._lens  # the batches pass here; nothing public shows them

    def read(batch: Batch) -> Any:
        seen.append(batch)
        return lens(batch)

    with patch.object(worker, "_lens", read), clocks() as spent:
        start = time.perf_counter()
        for _ in worker.run(prompts):
            pass
        whole = time.perf_counter() - start
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in seen:
            lens._adapter.trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    shares = {"forward": time.perf_counter() - start, **{name: _wall(clock) for name, clock in spent.items()}}
    return {**shares, "rest": whole - sum(shares.values()), "whole": whole}


def main() -> None:
    """Print a table, and fail if nothing went by inside a function, which would then have moved."""
    folder, count = sys.argv[1], int(sys.argv[2])
    prompts = [Prompt(number, str(number), text) for number, text in enumerate(PROMPTS[:count])]
    worker = Worker(WorkerSettings(ModelSettings(folder, dtype="float32"), LensSettings(10, taps=tuple(FOUR), positions="all")))
    measure(worker, prompts[:2])
    rounds = [measure(worker, prompts) for _ in range(ROUNDS)]
    print(f"{worker.certificate['lens']['path']}\n\n| of {ROUNDS} | median s | median share |\n|---|---|---|")
    for name in rounds[0]:
        seconds = statistics.median(one[name] for one in rounds)
        print(f"| {name} | {seconds:.2f} | {statistics.median(one[name] / one['whole'] for one in rounds):.0%} |")
    print()
    if idle := [name for name in INSIDE if not any(one[name] for one in rounds)]:
        sys.exit(f"shares: {', '.join(idle)} took no time: what it measures is no longer called")


if __name__ == "__main__":
    main()
