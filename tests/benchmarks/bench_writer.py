"""What a writer stores a second: ``python -m tests.benchmarks.bench_writer``, some minutes; see docs/scale.md.

Frames of lensed prompts (SmolLM2-135M, four taps, 30 layers, k=10, and the statistics that are stored by default) wait in a
real server until a writer process stores them, with some helpers. What the writer itself spends beside helpers bounds what
one writer can do on a machine with cores enough.
"""

import argparse
import dataclasses
import os
import secrets
import tempfile
import time
from pathlib import Path

import psutil

from raylens.scheduler.writer_process import WriterProcess
from raylens.storage.frame import split
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import FORMAT, Manifest, create_or_resume
from raylens.storage.payload import encode_payload
from raylens.storage.record import Prompt, Record
from raylens.storage.server import EmbeddedServer
from raylens.storage.stream import Stream
from raylens.workers.metrics import ALL
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.benchmarks.machine import load, processor
from tests.benchmarks.stored import paragraphs
from tests.running import command_line
from tests.waiting import wait_until

#: Tokens that are lensed, and positions that are stored: the records again and again.
LENSED, STORED = 1500, 20_000


def lensed() -> tuple[list[Record], int]:
    """Records of paragraphs, and the size of the vocabulary."""
    worker = Worker(WorkerSettings(ModelSettings("demo", dtype="float32"), LensSettings(positions="all", residual_stats=ALL)))
    prompts = [Prompt(index, str(index), text) for index, text in enumerate(paragraphs(LENSED))]
    return [outcome for outcome in worker.run(prompts) if isinstance(outcome, Record)], len(worker.vocabulary)


def last(record: Record) -> Record:
    """Its last position alone."""
    taps = {name: tap.part(slice(-1, None)) for name, tap in record.taps.items()}
    return dataclasses.replace(record, positions=record.positions[-1:], taps=taps)


def publish(stream: Stream, run: str, records: list[Record]) -> tuple[int, int, int]:
    """Send the records until STORED positions are; how many prompts and positions those are, and bytes of their payloads."""
    stream.create()
    prompts = positions = size = 0
    while positions < STORED:
        record = dataclasses.replace(records[prompts % len(records)], index=prompts, id=str(prompts))
        payload = encode_payload(record)
        for frame in split(payload, run, prompts, secrets.token_bytes(8)):
            stream.publish(frame)
        prompts, positions, size = prompts + 1, positions + len(record.positions), size + len(payload)
    return prompts, positions, size


def store(records: list[Record], vocabulary_size: int, helpers: int, url: str) -> str:
    """What one writer did with them, as cells of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder, run = RunFolder(runs_folder(Path(place)) / "run"), secrets.token_hex(8)
        stream = Stream(url, run)
        prompts, positions, size = publish(stream, run, records)
        manifest = Manifest(FORMAT, "run", run, "2026-01-01T00:00:00+00:00", {}, prompts, vocabulary_size, {}, {})
        create_or_resume(folder, manifest)
        ledger = Ledger(folder)
        with WriterProcess(folder, url, helpers):
            wait_until(lambda: ledger.refresh() or ledger.next, "the writer owns the run", seconds=60)
            began, imported = time.monotonic(), spent()[0]
            wait_until(lambda: ledger.refresh() is not None and ledger.count == prompts, "all is stored", seconds=600)
            seconds = time.monotonic() - began
            own, others = spent()
            own -= imported
        stream.drop()
        stream.close()
    rates = f"{prompts / seconds:,.0f} | {positions / seconds:,.0f} | {size / seconds / 1e6:.1f}"
    return f"{prompts:,} | {positions:,} | {helpers} | {rates} | {own / positions * 1e6:,.0f} | {others / positions * 1e6:,.0f}"


def spent() -> tuple[float, float]:
    """CPU seconds of the writer, and of its helpers together."""
    (writer,) = (one for one in psutil.Process().children() if "raylens.storage.writer" in command_line(one))
    times = [sum(process.cpu_times()[:2]) for process in (writer, *writer.children(recursive=True))]
    return times[0], sum(times[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--helpers", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    records, vocabulary_size = lensed()
    print(f"{processor()}; {load()}\n")
    print("| | prompts | positions | helpers | prompts/s | positions/s | MB/s | CPU us a position: writer | helpers |")
    print("|" + "---|" * 9, flush=True)
    with EmbeddedServer() as server:
        for name, chosen in (("last", [last(record) for record in records]), ("all", records)):
            for helpers in given.helpers:
                print(f"| {name} | {store(chosen, vocabulary_size, helpers, server.url)} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
