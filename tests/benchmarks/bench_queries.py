"""Queries against a scan of the JSON lines in the same run: ``python -m tests.benchmarks.bench_queries``, some ten minutes.

The run is generated: places of SmolLM2-135M records (four taps, 30 layers, k = 10), shuffled and varied (stored.py). A figure is
the least of some rounds; files are in the page cache.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from raylens.storage.compaction import compact
from raylens.storage.run import Run
from tests.benchmarks.machine import load, processor
from tests.benchmarks.stored import generated, paragraphs, real_records, size, write_run

ROUNDS = 3
COLD = """
import sys, time
from raylens.storage.store import open_store
start = time.perf_counter()
record = open_store(sys.argv[1])["run"][sys.argv[2]]
print(time.perf_counter() - start)
"""


def lines(run: Run) -> Iterator[Any]:
    """Every record as its JSON says."""
    for path in sorted(run.folder.records.iterdir()):
        with path.open("rb") as file:
            for line in zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).readall().splitlines():
                yield orjson.loads(line)


def scan_token(run: Run, token: int) -> int:
    """Places of resid_post at layers 5 to 19 where a token is among the best five, by a scan."""
    return sum(
        int((np.array(record["taps"]["resid_post"]["ids"][5:20], dtype=np.uint32)[:, :, :5] == token).any(axis=2).sum())
        for record in lines(run)
    )


def scan_depth(run: Run) -> list[int]:
    """Layer -> places whose final prediction leads for good from there on, by a scan."""
    counts = np.zeros(64, dtype=int)
    for record in lines(run):
        best = np.array([[place[0] for place in layer] for layer in record["taps"]["resid_post"]["ids"]])
        other = best != best[-1]
        stable = np.where(other.any(axis=0), len(other) - other[::-1].argmax(axis=0), 0)
        counts += np.bincount(stable, minlength=64)
    return counts.tolist()


def query_token(run: Run, token: int) -> int:
    """The same by the named query."""
    return len(run.query("token", token=f"id:{token}", tap="resid_post", layers="5:20", rank=5).to_arrow())


def query_depth(run: Run) -> list[int]:
    """The same by the named query."""
    found = {row["layer"]: row["stable"] for row in run.query("depth")}
    return [found.get(layer, 0) for layer in range(64)]


def seconds(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The least of some rounds, and what the last gave."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - start)
    return min(times), found


def cold(run: Run, prompt: str) -> float:
    """Seconds from an opened interpreter to the record, with the imports done."""
    command = [sys.executable, "-c", COLD, str(run.folder.root.parent.parent), prompt]
    return min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(ROUNDS))


def measure(run: Run, token: int, scans: bool) -> dict[str, float]:
    """Name -> seconds of each query, and of the scans if wanted."""
    found: dict[str, float] = {}
    found["token"], tokens = seconds(lambda: query_token(run, token), ROUNDS)
    found["depth"], depth = seconds(lambda: query_depth(run), ROUNDS)
    for name in ("layers", "handoff", "promoted"):
        found[name], _ = seconds(lambda name=name: run.query(name).rows(), ROUNDS)
    found["trajectory"], _ = seconds(lambda: run.query("trajectory", token=f"id:{token}").rows(), ROUNDS)
    found["depths, limit 100"], _ = seconds(lambda: run.query("depths", limit=100).rows(), ROUNDS)
    found["one record, cold"] = cold(run, f"prompt/{len(run) // 2}")
    if scans:
        found["scan for the token"], scanned_tokens = seconds(lambda: scan_token(run, token), 1)
        found["scan for the depth"], scanned_depth = seconds(lambda: scan_depth(run), 1)
        assert (tokens, depth) == (scanned_tokens, scanned_depth), "query and scan differ"
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[100_000], help="of the runs, such as 100000 1000000")
    parser.add_argument("--store", type=Path, help="where the runs are kept; a temporary folder by default")
    arguments = parser.parse_args()
    place = arguments.store or Path(tempfile.mkdtemp(prefix="raylens-bench-"))
    print(f"{processor()}; {load()}", flush=True)
    pool, vocabulary = real_records(paragraphs(2_000))
    token = vocabulary.index(b" the")
    for number, positions in enumerate(arguments.positions):
        start = time.perf_counter()
        run = write_run(place / f"{positions}", "run", positions // 100, generated(pool, positions), vocabulary)
        print(f"\n{positions:,} positions: written in {time.perf_counter() - start:.0f} s")
        report(run, token, scans=number == 0)
        start = time.perf_counter()
        before, after = compact(run.folder)
        print(f"compact: {before} segments, now {after}, {time.perf_counter() - start:.0f} s")
        report(run, token, scans=number == 0)
    if arguments.store is None:
        shutil.rmtree(place)


def report(run: Run, token: int, scans: bool) -> None:
    """A table of one run."""
    found = measure(run, token, scans)
    print(f"records {size(run.folder.records) / 1e6:,.0f} MB, tables {size(run.folder.tables) / 1e6:,.0f} MB; {load()}")
    for name, value in found.items():
        ratio = f" | {found[f'scan for the {name}'] / value:.0f}x" if f"scan for the {name}" in found else " |"
        print(f"| {name} | {value:.3f} s{ratio} |", flush=True)


if __name__ == "__main__":
    main()
