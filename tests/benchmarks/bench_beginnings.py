"""What it saves to read what prompts share once: ``python -m tests.benchmarks.bench_beginnings``; see docs/decisions/0023.

SmolLM2-135M in float32, four taps of all layers at every position, k=10, in batches as of a large run. Both ways take
turns, and CPU seconds of one thread are counted, so that neighbours disturb little.
"""

import argparse
import statistics
import time

import torch

from raylens.scheduler.shards import cut
from raylens.storage.record import Prompt
from raylens.storage.taps import DEFAULT_TAPS
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.batching import batches, pad
from raylens.workers.lens import Lens
from raylens.workers.model import load_model
from raylens.workers.settings import CPU_BATCH_TOKENS, InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.tokenize import Tokenized, Tokenizer
from tests.benchmarks.corpus import PROMPTS
from tests.benchmarks.machine import load, processor

SETTINGS = WorkerSettings(
    ModelSettings("demo", dtype="float32"), LensSettings(positions="all"), InputSettings(batch_tokens=CPU_BATCH_TOKENS)
)
COUNTRIES = ["France", "Germany", "Poland", "Sweden", "Finland", "Ireland", "Austria", "Hungary"]
COUNTRIES += ["Portugal", "Denmark", "Turkey", "Iran", "Iraq", "India", "China", "Chile"]
SHOTS = "".join(
    f"Question: What is the capital of {country}?\nAnswer: {city}\n\n"
    for country, city in [("Spain", "Madrid"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Peru", "Lima")]
)


def corpora() -> dict[str, list[Prompt]]:
    """Name -> prompts."""
    asked = [[{"role": "user", "content": f"Tell me in one sentence what {country} is known for."}] for country in COUNTRIES]
    return {
        "sixteen prompts of other benchmarks": [Prompt(str(n), n, text) for n, text in enumerate(PROMPTS[:16])],
        "one short sentence": [
            Prompt(str(n), n, f"The capital of {country} is the city of") for n, country in enumerate(COUNTRIES)
        ],
        "messages, with the template's system prompt": [Prompt(str(n), n, messages=one) for n, one in enumerate(asked)],
        "five examples, then a question": [
            Prompt(str(n), n, f"{SHOTS}Question: What is the capital of {country}?\nAnswer:")
            for n, country in enumerate(COUNTRIES)
        ],
    }


def timed(lens: Lens, adapter: Adapter, ready: list[list[Tokenized]], rounds: int) -> dict[str, list[float]]:
    """Way -> CPU seconds of each round: each position read by itself, shared ones once, and the forward pass alone."""
    cpu = torch.device("cpu")
    times: dict[str, list[float]] = {"each": [], "once": [], "forward": []}
    for number in range(rounds + 1):
        for way, spent in times.items():
            padded = [pad(batch, cpu, once=way == "once") for batch in ready]
            began = time.process_time()
            for batch in padded:
                if way == "forward":
                    with torch.inference_mode():
                        adapter.trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
                else:
                    lens(batch)
            if number:  # the first warms up
                spent.append(time.process_time() - began)
    return times


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    model, own = load_model(SETTINGS.model)
    adapter = adapt(model)
    lens = Lens(adapter, SETTINGS.lens, tuple(range(len(adapter.sites))), DEFAULT_TAPS)
    tokenizer = Tokenizer(own, SETTINGS.input, SETTINGS.lens.positions, 2048, len(own))
    torch.set_num_threads(1)
    print(f"{processor()} ({load()}), {rounds} rounds, CPU seconds of one thread\n")
    print("| corpus | positions | read | each by itself | once | ratio | forward of the former |\n|---|---|---|---|---|---|---|")
    for name, prompts in corpora().items():
        found = [[tokenizer(prompt) for prompt in shard.prompts] for shard in cut(prompts, 1 << 10, 1, SETTINGS)]
        ready = [
            batch for shard in found for batch in batches([one for one in shard if isinstance(one, Tokenized)], CPU_BATCH_TOKENS)
        ]
        times = timed(lens, adapter, ready, rounds)
        each, once, forward = (statistics.median(times[way]) for way in ("each", "once", "forward"))
        ratio = statistics.median(one / other for one, other in zip(times["each"], times["once"], strict=True))
        positions = sum(len(one.positions) for batch in ready for one in batch)
        read = sum(len(pad(batch, model.device, once=True).rows) for batch in ready)
        print(f"| {name} | {positions} | {read} | {each:.2f} | {once:.2f} | {ratio:.2f} | {forward / each:.0%} |", flush=True)


if __name__ == "__main__":
    main()
