"""The lens of a whole model of Llama-3.1-8B's shape on a GPU: ``python -m tests.benchmarks.bench_model_cuda``.

Weights are random, in bfloat16, so that nothing has to be downloaded; the work is that of the real model. Four taps of every
layer at every position, k=10, of prompts of one length, by

- the forward pass alone, without the model's own head,
- raylens: float32 answers from the bfloat16 weights,
- transformers with hooks as they are usually written: the model's own norm and head in bfloat16, then float32 log_softmax and
  topk over chunks of rows; its logits are rounded to bfloat16, so tokens come out of order,
- the same with the head in float32, which is as exact as raylens.

Without a GPU it ends with code 2.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from raylens.storage.record import Prompt
from raylens.storage.taps import DEFAULT_TAPS
from raylens.workers.adapter import adapt
from raylens.workers.batching import pad
from raylens.workers.lens import Lens
from raylens.workers.settings import LensSettings
from raylens.workers.tokenize import Tokenized
from tests.benchmarks.bench_lens_cuda import machine
from tests.benchmarks.peers.hooks import Hooks

K = 10


def model_of(layers: int) -> Any:
    """Llama-3.1-8B with random weights, on the GPU."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def hooked(model: Any, ids: Tensor, mask: Tensor, chunk: int, read: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The peer's whole work: hidden states by hooks, then logits, log_softmax and topk by chunks of rows; [N, k] of each."""
    peer = Hooks(model, SimpleNamespace(pad_token="-"))  # it is given ids, not texts
    rows = torch.cat([value.flatten(0, 1) for value in peer.hidden(ids, mask, list(DEFAULT_TAPS))])
    found = [torch.log_softmax(read(part).float(), dim=1).topk(K, dim=1) for part in torch.split(rows, chunk)]
    return torch.cat([values.cpu() for values, _ in found]), torch.cat([ids.cpu() for _, ids in found])


def seconds(run: Callable[[], Any], rounds: int) -> list[float]:
    """Of each round, after one that does not count."""
    times = []
    for number in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number:
            times.append(time.perf_counter() - began)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 2 not possible here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench_model_cuda: no NVIDIA GPU here, nothing was measured", file=sys.stderr)
        return 2
    print(f"{machine()}\ntorch {torch.__version__}")
    model = model_of(options.layers)
    adapter = adapt(model)
    print(f"certificate: {adapter.certificate['lens']}")
    generator = torch.Generator().manual_seed(0)
    prompts = [
        Tokenized(Prompt(n, str(n), ""), "", torch.randint(5, 128_000, (options.tokens,), generator=generator).tolist(),
                  list(range(options.tokens)), None)
        for n in range(options.prompts)
    ]  # fmt: skip
    batch = pad(prompts, torch.device("cuda"))
    norm, head = model.model.norm, model.lm_head
    wide = head.weight.float()
    lenses = {
        stats: Lens(adapter, LensSettings(top_k=K, positions="all", stats=stats), tuple(range(options.layers)), DEFAULT_TAPS)
        for stats in ((), ("kl", "next_logprob", "next_rank"))
    }
    ways: dict[str, Callable[[], Any]] = {
        "forward alone": lambda: adapter.trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False),
        "raylens": lambda: lenses[()](batch),
        "raylens, --stats kl,next_logprob,next_rank": lambda: lenses["kl", "next_logprob", "next_rank"](batch),
        "hooks, head in bfloat16": lambda: hooked(model, batch.ids, batch.mask, 2048, lambda rows: head(norm(rows))),
        "hooks, head in float32": lambda: hooked(
            model, batch.ids, batch.mask, 2048, lambda rows: norm(rows.float()).float() @ wide.T
        ),
    }
    tokens = options.prompts * options.tokens
    base = 0.0
    print(f"{tokens} tokens, {options.layers} layers, {len(DEFAULT_TAPS)} taps, k={K}")
    print(f"  {'':44}{'median s':>9}{'min':>8}{'max':>8}{'tokens/s':>10}{'raylens is':>12}{'GiB':>7}")
    for name, way in ways.items():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        with torch.inference_mode():
            times = seconds(way, options.rounds)
        median = statistics.median(times)
        base = median if name == "raylens" else base
        peak = (torch.cuda.max_memory_allocated() - held) / 2**30
        ratio = f"{median / base:11.2f}x" if base else " " * 12
        print(f"  {name:44}{median:9.3f}{min(times):8.3f}{max(times):8.3f}{tokens / median:10.0f}{ratio}{peak:7.2f}", flush=True)
    print(f"after: {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
