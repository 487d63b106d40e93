"""How long reading out takes: ``python -m tests.benchmarks.bench_lens``, some two minutes on two cores.

Everything runs in one process and in turns, so that what else the machine does falls on all alike. Read the ratios, not the
seconds; CPU seconds, of all threads together, suffer least from neighbours.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raylens.storage.record import Prompt
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.capture import capture
from raylens.workers.kernels import panels, tiles
from raylens.workers.kernels.laid_out import Kernel, LaidOut
from raylens.workers.lens import Lens
from raylens.workers.model import load_model
from raylens.workers.product import Unembedding
from raylens.workers.running import CompiledReadout, block_size
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.threads import each
from raylens.workers.topk import RunningReadout
from raylens.workers.worker import Worker
from tests.benchmarks.corpus import PROMPTS
from tests.benchmarks.machine import processor
from tests.benchmarks.peers.hooks import Hooks

K = 10
FOUR = ("attn_out", "resid_mid", "mlp_out", "resid_post")
#: 24 beginnings of sentences of some five tokens.
TEXTS = [" ".join(text.split()[:5]) for text in PROMPTS[:24]]

Work = Callable[[], object]


def measure(works: dict[str, Work], rounds: int, base: str) -> None:
    """Time all in turns; print wall and CPU seconds and the ratio to the base."""
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            work()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    print(f"| of {rounds} | median s | least to most | CPU s | {base} / it |\n|---|---|---|---|---|")
    for name, times in wall.items():
        median, used = statistics.median(times), statistics.median(cpu[name])
        ratio = statistics.median(one / other for one, other in zip(wall[base], times, strict=True))
        print(f"| {name} | {median:.3f} | {min(times):.3f} to {max(times):.3f} | {used:.3f} | {ratio:.2f} |")
    print(flush=True)


def hidden_rows(model: Any, tokenizer: Any, adapter: Adapter, count: int) -> Tensor:
    """[N, D] hidden states of every tap and layer, of the texts."""
    found: list[Tensor] = []
    hooks = {(tap, layer): site for layer, block in enumerate(adapter.sites) for tap, site in block.items()}
    for text in TEXTS[:8]:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode(), capture(hooks, torch.arange(ids.shape[1]), lambda _tap, _layer, rows: found.append(rows)):
            model(input_ids=ids)
    rows = torch.cat(found)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]


def by_block(rows: Tensor, weight: Tensor, size: int, running: RunningReadout | CompiledReadout) -> object:
    """Plain products by block of the vocabulary, each read out."""
    memory = torch.empty(len(rows) * size)
    for start in range(0, len(weight), size):
        part = weight[start : start + size]
        logits = memory[: len(rows) * len(part)].view(len(rows), len(part))
        running.add(torch.mm(rows, part.T, out=logits))
    return running.finish()


def products(model: Any, adapter: Adapter, rows: Tensor, rounds: int) -> None:
    """One product with the unembedding, and what reading it out adds."""
    cpu, weight = torch.device("cpu"), model.lm_head.weight.detach()
    normed = model.model.norm(rows)
    short, short_weight = normed.bfloat16(), weight.bfloat16()
    size = block_size(len(rows), cpu, K)
    works: dict[str, Work] = {
        "float32 product alone": lambda: torch.mm(normed, weight.T),
        "bfloat16 product alone (inexact)": lambda: torch.mm(short, short_weight.T),
        "product, log_softmax, topk": lambda: torch.log_softmax(torch.mm(normed, weight.T), dim=1).topk(K, dim=1),
        "plain twin, blocks of 8192": lambda: by_block(normed, weight, 8192, RunningReadout(len(rows), K, cpu)),
        f"compiled, blocks of {size}": lambda: by_block(normed, weight, size, CompiledReadout(len(rows), K)),
        "norm and Projection.read": lambda: adapter.projection.read(rows, K),
    }
    print(f"{len(rows)} hidden states x {len(weight)} tokens, k={K}")
    with torch.inference_mode():
        for work in works.values():  # threads are started and compiled code is loaded at the first call
            work()
        measure(works, rounds, "float32 product alone")


def own_kernels() -> list[Kernel]:
    """Products of our own that this machine can run."""
    return [kernel for kernel, here in ((panels.KERNEL, panels.SUPPORTED), (tiles.KERNEL, tiles.may_use())) if here]


def laying_out(head: Any, rounds: int) -> None:
    """What a load pays once for a product of our own, beside a plain copy of the weights."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = head.weight.detach().to(dtype)
        ways: dict[str, Work] = {kernel.name: partial(kernel.lay_out_entries, weight) for kernel in own_kernels()}
        for work in ways.values():  # compiled code is loaded at the first call
            work()
        print(f"weights in {str(dtype)[6:]}, laid out")
        measure({"a copy of them": weight.clone, **ways}, rounds, "a copy of them")


def product_rates(head: Any, rounds: int) -> None:
    """Products alone, all cores: torch's, which it divides among them, and our own, each core with rows of its own."""
    kernels = own_kernels()
    names = "".join(f" {kernel.name} | the ratio |" for kernel in kernels)
    print(f"| GFLOP/s of weights in | rows | torch.mm |{names}\n|---|---|---|{'---|---|' * len(kernels)}")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weights = copy.deepcopy(head).to(dtype)
        ways = [Unembedding(weights) for _ in range(len(kernels) + 1)]
        for way, kernel in zip(ways[1:], kernels, strict=True):
            way.laid_out = LaidOut(weights.weight.detach(), kernel)
        for count in (16, 64, 256, 1024):
            rows = torch.randn(count, head.in_features, generator=torch.Generator().manual_seed(0))
            flops = 2 * count * head.weight.numel() / 1e9
            rates = [[flops / _seconds(one, rows) for one in ways] for _ in range(rounds + 1)][1:]
            first, *others = (statistics.median(rate) for rate in zip(*rates, strict=True))
            ratios = [statistics.median(rate[n] / rate[0] for rate in rates) for n in range(1, len(ways))]
            ours = "".join(f" {rate:.0f} | {ratio:.2f} |" for rate, ratio in zip(others, ratios, strict=True))
            print(f"| {str(dtype)[6:]} | {count} | {first:.0f} |{ours}", flush=True)
    print()


def _seconds(unembedding: Unembedding, rows: Tensor) -> float:
    """Of all products of the rows, divided as ``Projection.read`` divides them."""
    workers = unembedding.workers(len(rows), len(rows))

    @torch.inference_mode()
    def multiply(part: Tensor) -> None:
        for _ in unembedding.blocks(part, block_size(len(part), part.device, K)):
            pass

    start = time.perf_counter()
    each(multiply, torch.tensor_split(rows, workers), workers)
    return time.perf_counter() - start


def end_to_end(model: Any, tokenizer: Any, adapter: Adapter, rounds: int) -> None:
    """Texts to records, four taps of every layer at every position."""
    lens = LensSettings(K, positions="all")
    worker = Worker(WorkerSettings(ModelSettings("demo", dtype="float32"), lens))
    layers = tuple(range(len(adapter.sites)))
    prompts = [Prompt(n, str(n), text) for n, text in enumerate(TEXTS)]

    def run(reader: Lens) -> Iterable[object]:
        worker._lens = reader  # the same worker and model either way
        return list(worker.run(prompts))

    hooks = Hooks(model, tokenizer)
    direct, walk = Lens(replace(adapter, walk=None), lens, layers, FOUR), Lens(adapter, lens, layers, FOUR)
    works: dict[str, Work] = {
        "hooks, log_softmax, topk": lambda: hooks.lens(TEXTS, list(FOUR)),
        "Worker, each tap by itself": lambda: run(direct),
        "Worker, running sums": lambda: run(walk),
    }
    for reader in (direct, walk):
        worker._lens = reader
        list(worker.run(prompts[:1]))
    tokens = sum(len(ids) for ids in tokenizer(TEXTS).input_ids)
    print(f"{len(TEXTS)} texts, {tokens} tokens, {len(layers)} layers x 4 taps, k={K}\n{walk.path}")
    measure(works, rounds, "hooks, log_softmax, topk")


def main() -> None:
    """Run all benchmarks and print tables."""
    import numba
    import transformers

    print(f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}, numba {numba.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, SmolLM2-135M in float32\n")
    model, tokenizer = load_model(ModelSettings("demo", dtype="float32"))
    adapter = adapt(model)
    laying_out(model.lm_head, 9)
    product_rates(model.lm_head, 9)
    products(model, adapter, hidden_rows(model, tokenizer, adapter, 240), 5)
    products(model, adapter, hidden_rows(model, tokenizer, adapter, 1024), 3)
    end_to_end(model, tokenizer, adapter, 2)


if __name__ == "__main__":
    main()
