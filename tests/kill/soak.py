"""Faults at random times until a run is done: ``python -m tests.kill.soak --seed 1 --kills 300 --prompts 3000``.

Afterwards every prompt must be exactly one record or one failure, and records equal those of an undisturbed run. Ends with
exit code 1 if not. The same seed draws the same faults, though not at the same point of the same process.
"""

import argparse
import faulthandler
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import raylens
from raylens.storage.record import Failure, Record
from raylens.storage.stream import connect
from tests.command import raylens_command
from tests.kill.comparing import same_results, times_entered
from tests.kill.faults import FAULTS, Fault
from tests.kill.stage import LENS, RUN, Complete, Stage
from tests.servers import KINDS
from tests.tiny import save_word_llama, sentences

#: Every so many prompts one is long enough for two frames.
LONG_EVERY, LONG_WORDS, WORDS = 40, 450, 7
#: Faults come until this part of the prompts is stored.
UNTIL = 0.95
#: Seconds after which a fault that does not return leaves every thread's stack, and the soak ends.
STUCK = 900


@dataclass
class Figures:
    """What a soak came to."""

    seed: int
    server: str
    prompts: int
    faults: Counter[str]
    drivers: int
    resubmitted: int
    seconds: float
    records: int
    failures: Counter[str]
    missing: int
    doubled: int
    differing: int
    keys_left: int

    def ok(self) -> bool:
        """Whether nothing was lost, doubled, changed or left behind."""
        return not (self.missing or self.doubled or self.differing or self.keys_left)

    def __str__(self) -> str:
        kinds = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in self.faults.most_common())
        failures = ", ".join(f"{kind} {number}" for kind, number in self.failures.items()) or "none"
        return (
            f"seed {self.seed}, {self.server}: {self.faults.total()} faults ({kinds})\n"
            f"{self.prompts} prompts by {self.drivers} drivers in {self.seconds:.0f} s, {self.resubmitted} resubmitted; "
            f"{self.records} records, failures: {failures}\n"
            f"missing {self.missing}, doubled {self.doubled}, differing {self.differing}, keys left {self.keys_left}"
        )


def soak(folder: Path, seed: int, kinds: list[Fault], kills: int, prompts: int, server: str) -> Figures:
    """Run, disturb, and compare.

    Raises:
        AssertionError: the run hangs, or ends as it must not.
    """
    rng = random.Random(seed)
    model = save_word_llama(folder / "model")
    corpus = folder / "prompts.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"p{n}", "text": text}) + "\n" for n, text in enumerate(_texts(prompts))))
    done = raylens_command("run", str(corpus), "-m", str(model), "-o", str(folder / "undisturbed"), *LENS, timeout=None)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (folder / "stage").mkdir()
    with Stage(folder / "stage", corpus, model, server) as stage:
        began = time.monotonic()
        faults = _disturb(stage, rng, kinds, kills, prompts)
        seconds = time.monotonic() - began
        with connect(stage.server.url) as client:
            keys = int(client.dbsize())
        return _compare(stage, folder, Figures(
            seed, server, prompts, faults, stage.starts, stage.resubmitted(), seconds, 0, Counter(), 0, 0, 0, keys,
        ))  # fmt: skip


def _texts(prompts: int) -> list[str]:
    short, long = sentences(prompts, WORDS), sentences(prompts, LONG_WORDS)
    return [long[n] if n % LONG_EVERY == LONG_EVERY - 1 else short[n] for n in range(prompts)]


def _disturb(stage: Stage, rng: random.Random, kinds: list[Fault], kills: int, prompts: int) -> Counter[str]:
    """Inject the faults, each when a random number of prompts is stored, and run to the end; how many of each."""
    chosen = kinds + rng.choices(kinds, weights=[FAULTS[kind] for kind in kinds], k=kills)
    chosen = chosen[:kills]
    rng.shuffle(chosen)
    faults: Counter[str] = Counter()
    try:
        for at, fault in zip(sorted(rng.uniform(0, UNTIL * prompts) for _ in chosen), chosen, strict=True):
            faulthandler.dump_traceback_later(STUCK, exit=True)
            stage.until(lambda at=at: stage.stored() >= at, f"{at:.0f} prompts are stored")  # type: ignore[misc]
            print(f"{stage.stored()} stored; {fault.__name__}", file=sys.stderr, flush=True)
            fault(stage, rng)
            faults[fault.__name__] += 1
        faulthandler.dump_traceback_later(STUCK, exit=True)
        stage.until(lambda: False, "the run is complete")
    except Complete:
        pass
    finally:
        faulthandler.cancel_dump_traceback_later()
    return faults


def _compare(stage: Stage, folder: Path, figures: Figures) -> Figures:
    entered = times_entered(stage.run_folder)
    figures.missing = sum(entered[index] == 0 for index in range(figures.prompts))
    figures.doubled = sum(times > 1 for times in entered.values())
    undisturbed = raylens.open(folder / "undisturbed")[RUN]
    for outcome in raylens.open(stage.run_folder.root.parent.parent)[RUN]:
        if isinstance(outcome, Failure):
            figures.failures[outcome.kind] += 1
            continue
        twin = undisturbed[outcome.id]
        figures.records += 1
        figures.differing += not (isinstance(twin, Record) and same_results(outcome, twin))
    return figures


def main() -> int:
    """Entry point; the exit code."""
    names = {fault.__name__: fault for fault in FAULTS}
    parser = argparse.ArgumentParser(description="Faults at random times until a run is done.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--kinds", nargs="+", default=list(names), choices=names, metavar="KIND", help=f"of {', '.join(names)}")
    parser.add_argument("--server", choices=KINDS, default=KINDS[0])
    options = parser.parse_args()
    kinds = [names[name] for name in options.kinds]
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="raylens-soak-") as folder:
        figures = soak(Path(folder), options.seed, kinds, options.kills, options.prompts, options.server)
    print(figures)
    if figures.faults.total() < options.kills:
        print(f"the run was over before {options.kills} faults; give it more --prompts")
        return 1
    return 0 if figures.ok() else 1


if __name__ == "__main__":
    sys.exit(main())
