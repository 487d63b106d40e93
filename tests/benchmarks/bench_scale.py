"""What prompts cost beside the model: ``python -m tests.benchmarks.bench_scale [PROMPTS ...]``; see docs/scale.md.

The real driver, Ray, server, actor and writer; the model is a made-up Llama of one layer and 32 numbers, so that scheduling
and delivery are nearly all there is to do. For each number of prompts (a hundred thousand unless told otherwise): CPU of each
process a prompt, once the first are stored; the highest resident memory in the first quarter of the prompts beside that in
the last; and what Ray holds, by ``ray memory``, at a quarter and at three quarters.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from raylens.scheduler.corpus import Corpus, CorpusSettings
from tests.benchmarks.machine import load, processor
from tests.running import Running, command_line
from tests.tiny import save_word_llama, sentences

WORDS = 4
#: What each process's command line holds.
ROLES = {"server": "valkey-server", "actor": "LensActor", "writer": "raylens.storage.writer"}
#: Flat is what grows by less than this part, or by less than what one allocator's arena takes.
PART, ARENA = 0.1, 16
#: Files of a corpus that is many.
PARTS = 16
#: Parts of the prompts after which Ray is asked what it holds.
ASKED = (0.25, 0.75)
#: Kinds of references in ``ray memory``.
REFERENCES = ("LOCAL_REFERENCE", "PINNED_IN_MEMORY", "USED_BY_PENDING_TASK", "CAPTURED_IN_OBJECT", "ACTOR_HANDLE")
_MIB = 1 << 20


class Sampler(threading.Thread):
    """Notes each second what the processes of a run hold and have spent, with how many prompts are stored by then."""

    def __init__(self, running: Running) -> None:
        super().__init__(daemon=True)
        self._running = running
        self.done, self.over = 0, threading.Event()
        self.memory: list[tuple[int, str, float]] = []
        self.cpu: list[tuple[int, Counter[str]]] = []

    def run(self) -> None:
        while not self.over.wait(1):
            spent: Counter[str] = Counter()
            for role, process in processes(self._running):
                with suppress(psutil.Error):  # it has just ended
                    self.memory.append((self.done, role, process.memory_info().rss / _MIB))
                    spent[role] += sum(process.cpu_times()[:2])
            self.cpu.append((self.done, spent))

    def highest(self, role: str, after: int, before: int) -> float:
        """MiB at most while between so many prompts were stored."""
        return max((size for done, name, size in self.memory if name == role and after <= done <= before), default=0.0)

    def spent(self, role: str) -> float:
        """CPU microseconds a prompt."""
        (first, before), (last, after) = self.cpu[0], self.cpu[-1]
        return (after[role] - before[role]) / (last - first) * 1e6


def processes(running: Running) -> list[tuple[str, psutil.Process]]:
    """The processes of a run and their roles; all but ours are Ray's."""
    driver = psutil.Process(running.process.pid)
    found = [("driver", driver)]
    for child in driver.children(recursive=True):
        line = command_line(child)
        if not line.startswith("/bin/sh"):  # the shell that guards the server
            found.append((next((role for role, word in ROLES.items() if word in line), "Ray"), child))
    return found


def held_by_ray(running: Running) -> dict[str, int]:
    """Kind of reference -> how many there are in the cluster of a run."""
    (raylet,) = running.children("raylet/raylet")
    address = next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address="))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": raylet.environ()["RAY_AUTH_TOKEN_PATH"]}
    command = [str(Path(sys.executable).with_name("ray")), "memory", f"--address={address}", "--no-format"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | token, timeout=120)
    assert done.returncode == 0, done.stderr
    return Counter(
        re.findall(r"LOCAL_REFERENCE|PINNED_IN_MEMORY|USED_BY_PENDING_TASK|CAPTURED_IN_OBJECT|ACTOR_HANDLE", done.stdout)
    )


def write_corpus(path: Path, prompts: int) -> None:
    with path.open("w") as file:
        for number, text in enumerate(sentences(prompts, WORDS)):
            file.write(json.dumps({"id": f"p/{number}", "text": text}) + "\n")


def checking(folder: Path, prompts: int) -> None:
    """How long a corpus is checked before anything else happens, by its form."""
    lines = folder / "lines.jsonl"
    write_corpus(lines, prompts)
    texts = lines.read_text().splitlines(keepends=True)
    pq.write_table(pa.Table.from_pylist(list(map(json.loads, texts))), folder / "table.parquet")
    part = -(-prompts // PARTS)
    for number in range(PARTS):
        (folder / f"part-{number}.jsonl").write_text("".join(texts[number * part : (number + 1) * part]))
    print("| corpus | prompts | seconds to check | prompts/s |\n|---|---|---|---|")
    for name, source in (("JSON lines", lines.name), ("Parquet", "table.parquet"), (f"a glob of {PARTS} files", "part-*.jsonl")):
        began = time.monotonic()
        found = Corpus(CorpusSettings(sources=(str(folder / source),))).scan()
        seconds = time.monotonic() - began
        print(f"| {name} | {found.count:,} | {seconds:.1f} | {found.count / seconds:,.0f} |", flush=True)
    print()


def measure(folder: Path, prompts: int, options: list[str]) -> None:
    """One run, and what is to be said of it."""
    write_corpus(folder / "corpus.jsonl", prompts)
    model = save_word_llama(folder / "model", layers=1)
    command = ["run", str(folder / "corpus.jsonl"), "-m", str(model), "-o", str(folder / "store"), "--json", *options]
    asked = [int(part * prompts) for part in ASKED]
    held: list[str] = []
    times: dict[str, float] = defaultdict(float)
    started = time.monotonic()
    with Running(folder / "stderr", *command) as running:
        sampler = Sampler(running)
        for event in running.events():
            times.setdefault(event.get("text", event["event"]), time.monotonic() - started)
            if event["event"] != "progress":
                continue
            if not sampler.done:
                began, before = time.monotonic(), event["done"]
                sampler.start()
            sampler.done = event["done"]
            if asked and sampler.done >= asked[0]:
                held.append(f"at {asked.pop(0):,} stored {dict(held_by_ray(running))}")
            if sampler.done == prompts:  # from here on processes end
                sampler.over.set()
                break
        rate = (prompts - before) / (time.monotonic() - began)
        assert running.finish() == 0, running.stderr()
    scanned = times["reading the model's configuration"] - times["checking the corpus"]
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    print(f"{prompts:,} prompts of {WORDS} words: {rate:,.0f} prompts/s, {size / prompts:,.0f} bytes stored a prompt;")
    print(f"corpus checked in {scanned:.1f} s, first prompts stored after {times['progress']:.1f} s")
    print(f"references that Ray holds: {'; '.join(held)}\n")
    print("| | CPU us a prompt | MiB in the first quarter | in the last | |\n|---|---|---|---|---|")
    for role in ("driver", *ROLES, "Ray"):
        first, last = sampler.highest(role, 0, prompts // 4), sampler.highest(role, prompts - prompts // 4, prompts)
        flat = "flat" if last - first < max(PART * first, ARENA) else "grows"
        print(f"| {role} | {sampler.spent(role):,.0f} | {first:.1f} | {last:.1f} | {flat} |")
    print(flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", type=int, nargs="*", default=[100_000])
    given, options = parser.parse_known_args()
    print(f"{processor()}; {load()}\n")
    with tempfile.TemporaryDirectory() as folder:
        checking(Path(folder), max(given.prompts))
    for prompts in given.prompts:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), prompts, options or ["--actors", "1"])
    print(f"{load()} after")


if __name__ == "__main__":
    main()
