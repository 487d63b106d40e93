"""A dry run against the run it speaks of: ``python -m tests.benchmarks.bench_dry_run``, some minutes a round on two cores.

Each case is estimated and then run, by the command line and into an empty store; seconds are from the command to its end, bytes
of all files of the run's folder, memory the most that the actor had. The model is the demo's.
"""

import argparse
import json
import os
import re
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from raylens.scheduler.demo import PROMPTS
from raylens.scheduler.dry_run.estimate import Estimate
from tests.benchmarks.machine import load, processor
from tests.benchmarks.stored import paragraphs
from tests.command import raylens_command
from tests.running import Running

#: Name -> corpus and options.
CASES = {
    "demo, all": ("demo", ("--positions", "all")),
    "demo, last": ("demo", ()),
    "demo, generate 5": ("demo", ("--generate", "5")),
    "text, last": ("text", ()),
    "text, generate 5": ("text", ("--generate", "5")),
    "sentences, all": ("sentences", ("--positions", "all")),
}
TEXTS, SENTENCES = 300, 120


def write_corpora(folder: Path) -> dict[str, Path]:
    """The demo's prompts, paragraphs of raylens's documents, and sentences of these."""
    texts = paragraphs(1 << 20)[:TEXTS]
    sentences = [part for text in texts for part in re.split(r"(?<=[.:;])\s+", text) if 8 < len(part) < 200][:SENTENCES]
    found = {"demo": PROMPTS}
    for name, prompts in (("text", texts), ("sentences", sentences)):
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts))
    return found


def actor_memory(running: Running, over: threading.Event, most: list[int]) -> None:
    """Note the most that an actor holds, until told that the run is over."""
    while not over.wait(0.5):
        with suppress(psutil.Error):
            most += [one.memory_info().rss for one in running.children("ray::LensActor")]


def measure(folder: Path, command: list[str]) -> tuple[float, int, int]:
    """Seconds, bytes and the actor's memory of one run."""
    began, over, most = time.monotonic(), threading.Event(), [0]
    with Running(folder / "stderr", *command, "-o", str(folder / "store"), "--name", "run", "--json") as running:
        watcher = threading.Thread(target=actor_memory, args=(running, over, most))
        watcher.start()
        try:
            assert running.finish() == 0, running.stderr()
        finally:
            over.set()
            watcher.join()
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    return seconds, size, max(most)


def row(name: str, corpus: Path, options: tuple[str, ...]) -> str:
    """One case, estimated and run."""
    command = ["run", str(corpus), "-m", "demo", *options]
    before, began = os.getloadavg()[0], time.monotonic()
    done = raylens_command(*command, "--dry-run", "--json", "--quiet", timeout=None)
    assert done.returncode == 0, done.stderr
    spent = time.monotonic() - began
    found = msgspec.convert(json.loads(done.stdout), Estimate)
    assert found.seconds is not None
    with tempfile.TemporaryDirectory() as folder:
        seconds, size, memory = measure(Path(folder), command)
    said = f"{found.seconds.expected:.0f} ({found.seconds.least:.0f} to {found.seconds.most:.0f})"
    ratios = f"**{found.seconds.expected / seconds:.2f}** | {found.store_bytes / size:.2f} | {found.host_bytes / memory:.2f}"
    counts = f"{found.prompts} | {found.tokens:,} | {found.places:,}"
    return f"| {name} | {counts} | {spent:.0f} | {said} | {seconds:.0f} | {ratios} | {before:.1f}, {os.getloadavg()[0]:.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all unless named")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    print(f"{processor()}; {load()}\n")
    print("| | prompts | tokens | places | dry run s | it says, s | run s | time | bytes | memory | load before, after |")
    print("|" + "---|" * 11, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        corpora = write_corpora(Path(folder))
        for _ in range(given.rounds):
            for name in given.cases or CASES:
                corpus, options = CASES[name]
                print(row(name, corpora[corpus], options), flush=True)


if __name__ == "__main__":
    main()
