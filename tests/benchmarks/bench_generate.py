"""Generation against the seed's own way, on its own job: ``python -m tests.benchmarks.bench_generate``; see docs/benchmarks.md.

Ten new tokens a prompt, the fifteen best of four taps at the last position of each step, without pictures. The seed takes one
prompt at a time and makes two passes a token over the whole text. The plain way is one batch with a cache, and hooks.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve
from tests.benchmarks.bench_peers import DEFAULT_ENVIRONMENT, Setting, started
from tests.benchmarks.corpus import PROMPTS
from tests.benchmarks.machine import load, processor
from tests.benchmarks.processes import PeerError
from tests.benchmarks.rounds import FOUR, in_turns, table

TOP_K = 15
#: Of the corpus: the first of the prompts taken.
FIRST = 16
RAYLENS = ("raylens", "raylens_generate")
PEERS = (("plain hooks with a cache", "hooks_generate"), ("LogitLens4LLMs, made again", "seed"))


def compared(folder: str, texts: list[str], rounds: int) -> None:
    """All three in turns."""
    os.environ["RAYLENS_BENCH_TOP_K"] = str(TOP_K)  # of every peer's process
    with started(Setting(folder, DEFAULT_ENVIRONMENT, texts, rounds), RAYLENS, *PEERS) as (base, *others):
        table(in_turns(base, others, texts, FOUR, rounds))


def shares(folder: str, texts: list[str], rounds: int) -> None:
    """Print what raylens' own time goes into."""
    from raylens.storage.record import Prompt
    from raylens.workers.lens import Lens
    from raylens.workers.sampling import Sampler
    from tests.benchmarks.peers.raylens_generate import worker

    ours, prompts = worker(folder), [Prompt(number, str(number), text) for number, text in enumerate(texts)]
    found: dict[str, list[float]] = {"lens": [], "sampling": []}
    with _clock(Lens, "taps") as lens, _clock(Sampler, "__call__") as sampling:
        for number in range(rounds + 1):
            lens[0] = sampling[0] = 0.0
            began = time.perf_counter()
            list(ours.run(prompts))
            whole = time.perf_counter() - began
            if number:  # the first is warm-up
                found["lens"].append(lens[0] / whole)
                found["sampling"].append(sampling[0] / whole)
    lensing, drawing = (statistics.median(found[name]) for name in ("lens", "sampling"))
    print(f"Of raylens' own time {lensing:.0%} is the lens, {drawing:.1%} sampling, the rest forward passes and hooks")


@contextmanager
def _clock(owner: Any, name: str) -> Iterator[list[float]]:
    """While open, counts the seconds spent inside a method."""
    spent, inner = [0.0], getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - began

    with patch.object(owner, name, timed):
        yield spent


SECTIONS: tuple[Callable[[str, list[str], int], None], ...] = (compared, shares)


def main() -> None:
    """Measure both sections."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo", help="as of raylens run; Llama-like")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    source = resolve(ModelSettings(given.model))
    texts = PROMPTS[FIRST : FIRST + given.prompts]
    print(f"{processor()}; {source.label} in float32, {len(texts)} prompts; model loading and warm-up not timed ({load()})\n")
    for section in SECTIONS:
        try:
            section(str(Path(source.path)), texts, given.rounds)
        except PeerError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
