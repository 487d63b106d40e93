"""Memory of a run's processes over many small prompts: ``python -m tests.benchmarks.bench_memory [PROMPTS]``.

The real driver, Ray, server, actor and writer; the model is a made-up Llama of one layer and 32 numbers, so that delivery is all
there is to do. What grows with prompts would show: each process's highest resident memory in the first quarter of the prompts
stands beside that in the last. 100,000 prompts unless told otherwise.
"""

import json
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.benchmarks.machine import load, processor
from tests.running import Running, command_line
from tests.tiny import save_word_llama, sentences

PROMPTS = 100_000
WORDS = 4
#: What each process's command line holds.
ROLES = {"server": "valkey-server", "actor": "LensActor", "writer": "raylens.storage.writer"}
#: Flat is what grows by less than this part, or by less than what one allocator's arena takes.
PART, ARENA = 0.1, 16
_MIB = 1 << 20


class Sampler(threading.Thread):
    """Notes each process's resident memory once a second, with how many prompts are stored by then."""

    def __init__(self, running: Running) -> None:
        super().__init__(daemon=True)
        self._running = running
        self.done, self.over = 0, threading.Event()
        self.samples: list[tuple[int, str, float]] = []

    def run(self) -> None:
        while not self.over.wait(1):
            for role, process in self._processes():
                with suppress(psutil.Error):  # it has just ended
                    self.samples.append((self.done, role, process.memory_info().rss / _MIB))

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        driver = psutil.Process(self._running.process.pid)
        found = [("driver", driver)]
        for child in driver.children(recursive=True):
            line = command_line(child)
            if not line.startswith("/bin/sh"):  # the shell that guards the server
                found += [(role, child) for role, word in ROLES.items() if word in line]
        return found

    def highest(self, role: str, after: int, before: int) -> float:
        """MiB at most while between so many prompts were stored."""
        return max(size for done, name, size in self.samples if name == role and after <= done <= before)


def write_corpus(path: Path, prompts: int) -> None:
    with path.open("w") as file:
        for number, text in enumerate(sentences(prompts, WORDS)):
            file.write(json.dumps({"id": f"p/{number}", "text": text}) + "\n")


def measure(folder: Path, prompts: int) -> tuple[Sampler, float]:
    """The samples of one run, and the prompts it stored a second."""
    write_corpus(folder / "corpus.jsonl", prompts)
    model = save_word_llama(folder / "model", layers=1)
    options = ["-m", str(model), "-o", str(folder / "store"), "--actors", "1", "--json"]
    with Running(folder / "stderr", "run", str(folder / "corpus.jsonl"), *options) as running:
        sampler = Sampler(running)
        began, before = 0.0, 0
        for event in running.events():
            if event["event"] != "progress":
                continue
            if not sampler.done:
                began, before = time.monotonic(), event["done"]
                sampler.start()
            sampler.done = event["done"]
            if sampler.done == prompts:  # from here on processes end
                sampler.over.set()
                break
        seconds = time.monotonic() - began
        assert running.finish() == 0, running.stderr()
    return sampler, (prompts - before) / seconds


def main() -> None:
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS
    with tempfile.TemporaryDirectory() as folder:
        sampler, rate = measure(Path(folder), prompts)
    print(f"{prompts:,} prompts of {WORDS} words, {rate:,.0f} prompts/s; {processor()}, {load()}\n")
    print("| MiB at most | first quarter | last quarter | |\n|---|---|---|---|")
    for role in ("driver", *ROLES):
        first = sampler.highest(role, 0, prompts // 4)
        last = sampler.highest(role, prompts - prompts // 4, prompts)
        flat = last - first < max(PART * first, ARENA)
        print(f"| {role} | {first:.1f} | {last:.1f} | {'flat' if flat else 'grows'} |")


if __name__ == "__main__":
    main()
