"""Size of a run on disk, by form: ``python -m tests.benchmarks.bench_store``, some minutes on two cores.

SmolLM2-135M in float32 on paragraphs of raylens's documents: four taps, all 30 layers and positions, k = 10.
"""

import argparse
import tempfile
import time
from pathlib import Path

from raylens.storage.compaction import compact
from raylens.storage.run import Run
from tests.benchmarks.machine import load, processor
from tests.benchmarks.stored import paragraphs, real_records, size, write_run


def line(name: str, run: Run, positions: int) -> str:
    """A row of the table; kB are 1,000 bytes."""
    records, tables = size(run.folder.records), size(run.folder.tables)
    files = len(list(run.folder.records.iterdir()))
    each = " | ".join(f"{part / positions / 1000:.2f}" for part in (records, tables))
    return f"| {name} | {files} | {each} | {(records + tables) / records:.3f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=6_000, help="tokens of the corpus, about")
    arguments = parser.parse_args()
    records, vocabulary = real_records(paragraphs(arguments.tokens))
    positions = sum(len(record.positions) for record in records)
    print(f"{processor()}; {load()}; {positions:,} positions of {len(records)} prompts\n")
    print("| | segments | JSON lines, kB a position | tables, kB a position | both over JSON lines |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place), "run", len(records), records, vocabulary)
        print(line("as written", run, positions), flush=True)
        start = time.perf_counter()
        compact(run.folder)
        print(line("after compact", run, positions))
        print(f"\ncompact: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
