"""What statistics cost: ``python -m tests.benchmarks.bench_statistics``, some minutes; see docs/decisions/0015.

CPU seconds of one thread, so that neighbours disturb little; all ways take turns. SmolLM2-135M in float32, four taps, all layers,
k=10.
"""

import argparse
import os
import statistics
import time

import torch

from raylens.storage.positions import Positions
from raylens.storage.record import Prompt
from raylens.storage.taps import DEFAULT_TAPS
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.batching import Batch, pad
from raylens.workers.lens import Lens
from raylens.workers.metrics import ALL
from raylens.workers.model import load_model
from raylens.workers.settings import LensSettings, ModelSettings
from raylens.workers.tokenize import Tokenized

#: Name -> statistics, and more of them of resid_post only.
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing asked": ((), ()),
    "next_logprob,next_rank": (("next_logprob", "next_rank"), ()),
    "kl": (("kl",), ()),
    "all": (ALL, ()),
    "by default: all, of resid_post": ((), ALL),
}
#: Prompts, tokens of each, positions.
BATCHES = ((2, 24, "all"), (16, 13, "last"))


def batch(count: int, length: int, positions: str) -> Batch:
    """Prompts of ids spread over the vocabulary."""
    ids = [[5 + (number * length + place) * 7919 % 49_000 for place in range(length)] for number in range(count)]
    chosen = Positions.parse(positions).among(range(length), length)
    return pad([Tokenized(Prompt(n, str(n)), "", one, chosen, None) for n, one in enumerate(ids)], torch.device("cpu"))


def lens(adapter: Adapter, way: str) -> Lens:
    """The lens that asks for it."""
    stats, residual = WAYS[way]
    return Lens(adapter, LensSettings(10, stats=stats, residual_stats=residual), tuple(range(len(adapter.sites))), DEFAULT_TAPS)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model, _ = load_model(ModelSettings("demo", dtype="float32"))
    adapter = adapt(model)
    lenses = {way: lens(adapter, way) for way in WAYS}
    print(
        f"load {os.getloadavg()[0]:.1f} before, {rounds} rounds\n\n| | asked | median CPU s | over nothing asked | by the least |"
    )
    print("|---|---|---|---|---|")
    for count, length, positions in BATCHES:
        one = batch(count, length, positions)
        spent: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):
            for way, read in lenses.items():
                began = time.process_time()
                read(one)
                if number:  # the first warms up
                    spent[way].append(time.process_time() - began)
        base, least = (take(spent["nothing asked"]) for take in (statistics.median, min))
        for way, found in spent.items():
            middle = statistics.median(found)
            name = f"{count} x {length} tokens, {positions}"
            print(f"| {name} | {way} | {middle:.2f} | {middle / base:.2f} | {min(found) / least:.2f} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
