"""What hostile entries make a real writer process take: none ends it, and its memory stays where it was."""

import os
import secrets
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard

from raylens.storage import building as building_module
from raylens.storage import gathering as gathering_module
from raylens.storage import writer as writer_module
from raylens.storage.frame import CHUNK_BYTES
from raylens.storage.ledger import Ledger
from raylens.storage.payload import MAX_HEAD_BYTES, encode_payload
from raylens.storage.record import Record, TapLens
from raylens.storage.server import EmbeddedServer
from raylens.storage.store import Store
from raylens.storage.stream import READ_COUNT, Stream
from raylens.storage.writer import Orders, Writer
from tests.builders import VOCABULARY_SIZE, make_frames, make_large_record, make_record, make_run, same
from tests.hostile.test_hostile_frames import Forger
from tests.waiting import wait_until
from tests.wire import Raw, close_payload, compress, declare, make_frame, open_payload

PROMPTS = 24
FORGED = 10_000
#: Times that every bomb is sent, each to a prompt of its own; of several at one prompt a writer tries one after the other.
BOMBED, BOMBS = 8, 13
#: Resident memory that the hostile entries may add: a head of the largest size is inflated before it is found to be none.
ALLOWED = MAX_HEAD_BYTES + (64 << 20)
#: Beginnings of attempts that never end.
ORPHANS, ORPHAN_BYTES = 300, 100_000
#: Bytes of arrays of a record that is small on the wire.
ZEROS = 3_000_000
#: maxrss is in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def zeros(index: int) -> Record:
    """A valid record of ``ZEROS`` bytes of arrays, and some more, all of them zero."""
    layers = ZEROS // (VOCABULARY_SIZE * 6)
    places, best = (layers, 1), (layers, 1, VOCABULARY_SIZE)
    arrays = np.zeros(best, np.uint32), np.zeros(best, np.float16), np.zeros(places, np.float32), np.zeros(places, np.float32)
    numbers = tuple(range(layers))
    return Record(f"prompt-{index}", index, "a", [0], ["a"], [0], list(numbers), {"resid_post": TapLens(numbers, *arrays)})


def bombs(run: str, prompts: Iterator[int]) -> list[bytes]:
    """Small entries that ask for gigabytes, each in another way and at a prompt of its own; those of msgpack also without a
    frame around them."""
    zeros = zstandard.compress(bytes(512 << 20), 1)[: CHUNK_BYTES // 2]
    small: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
        "a head that declares 16 EiB": lambda value, _: value.update(head=Raw(declare(compress(b"{}"), (1 << 64) - 1))),
        "a head of zeros at the limit": lambda value, _: value.update(head=Raw(zstandard.compress(bytes(MAX_HEAD_BYTES), 1))),
        "an array that inflates to 512 MiB": lambda _, tap: tap.update(ids=Raw(declare(zeros, 96))),
        "a shape of 4096 x 4096 x 500": lambda _, tap: tap.update(shape=[4096, 4096, 500]),
        "a shape over 64 bits": lambda _, tap: tap.update(shape=[1 << 62, 1 << 62, 1]),
    }
    made = []
    for change in small.values():
        index = next(prompts)
        value = open_payload(encode_payload(make_record(index)))
        change(value, value["taps"]["resid_post"])
        made.append(make_frame(run, close_payload(value), index=index, attempt=secrets.token_bytes(8)))
    lengths = [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ]
    nested = [b"\x91" * 500_000, b"\x81\xa1a" * 200_000, b"\xdc\x00\x01" * 300_000]
    framed = [make_frame(run, body, index=next(prompts), attempt=secrets.token_bytes(8)) for body in lengths + nested]
    return made + lengths + nested + framed


def write_until(run: Path, url: str, done: Callable[[], bool]) -> int:
    """A writer process from its start until something holds; the most memory it had, in bytes."""
    writer = subprocess.Popen([sys.executable, "-m", "raylens.storage.writer"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdin is not None
    writer.stdin.write(msgspec.json.encode(Orders(str(run), url)) + b"\n")
    writer.stdin.flush()
    wait_until(done, "the writer is through")
    writer.stdin.close()
    _, status, usage = os.wait4(writer.pid, 0)
    writer.returncode = os.waitstatus_to_exitcode(status)
    assert writer.returncode == 0, "no entry ends it"
    return usage.ru_maxrss * RSS_UNIT


def test_ten_thousand_hostile_entries_do_not_grow_the_writer(
    server: EmbeddedServer, open_stream: Callable[..., Stream], tmp_path: Path
) -> None:
    """The writer's peak is that of one that stores the same records in peace, but for what one entry may ask for."""
    peaks, bombed = [], range(PROMPTS, PROMPTS + BOMBED * BOMBS)
    for hostile in (False, True):
        folder, manifest = make_run(tmp_path / str(hostile), prompts=bombed.stop)
        stream = open_stream(server.url, manifest.uid)
        stream.create()
        forger = Forger(7, manifest.uid)
        if hostile:  # prompt 0 is left alone: a harmless change may pass for a record
            for number in range(FORGED):
                stream.publish(forger.entry(1 + number % (PROMPTS - 1)))
            prompts = iter(bombed)
            for _ in range(BOMBED):
                for data in bombs(manifest.uid, prompts):
                    stream.publish(data)
        for data in make_frames(make_record(0), manifest.uid):
            stream.publish(data)
        peaks.append(write_until(folder.root, server.url, lambda stream=stream: stream.length() == 0))  # type: ignore[misc]
        run = Store(tmp_path / str(hostile))["demo"]
        assert same(run["prompt-0"], make_record(0))
        if hostile:
            refused = [one.index for one in run.quarantine()]
            assert len(refused) > FORGED // 4
            assert set(bombed) <= set(refused)
            assert len(run) <= PROMPTS
        stream.drop()
    assert peaks[1] - peaks[0] < ALLOWED, f"{peaks} bytes"


def test_small_payloads_that_inflate_a_thousandfold_are_not_inflated_together(
    server: EmbeddedServer, open_stream: Callable[..., Stream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of entries of some kilobytes that are megabytes of zeros, a segment has as many as fit its bound, though one read brings
    all; so the memory that they take does not grow with their number."""
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    monkeypatch.setattr(building_module, "INFLATED_BYTES", 2 * ZEROS)
    folder, manifest = make_run(tmp_path, prompts=READ_COUNT)
    stream = open_stream(server.url, manifest.uid)
    stream.create()
    for index in range(READ_COUNT):
        (data,) = make_frames(zeros(index), manifest.uid)
        assert len(data) < ZEROS // 500
        stream.publish(data)
    writer = Writer(folder, stream)
    writer.take_over()
    tracemalloc.start()
    try:
        assert writer.step() == READ_COUNT
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * READ_COUNT * ZEROS
    commits = [len(commit.entries) for commit in Ledger(folder).refresh()]
    assert commits == [0, *[2] * (READ_COUNT // 2)]
    assert same(Store(tmp_path)["demo"]["prompt-7"], zeros(7))
    stream.drop()


def test_chunks_that_never_complete_are_forgotten(
    server: EmbeddedServer, open_stream: Callable[..., Stream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beginnings of ever new attempts are held up to a bound; a record among them is stored, and then all are deleted."""
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(gathering_module, "MAX_BYTES", 1 << 20)
    folder, manifest = make_run(tmp_path, prompts=2)
    stream = open_stream(server.url, manifest.uid)
    stream.create()

    def orphans(index: int) -> None:
        for _ in range(ORPHANS):
            body = secrets.token_bytes(ORPHAN_BYTES)
            stream.publish(make_frame(manifest.uid, body, index=index, attempt=secrets.token_bytes(8), chunks=2))

    monkeypatch.setattr("raylens.storage.frame.CHUNK_BYTES", 200_000)  # a record of some chunks
    record = make_large_record(0)
    frames = make_frames(record, manifest.uid)
    assert len(frames) > 3
    stream.publish(frames[0])
    orphans(0)
    for data in frames[1:]:
        stream.publish(data)
    writer = Writer(folder, stream)
    writer.take_over()
    tracemalloc.start()
    try:
        while writer.step():
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < ORPHANS * ORPHAN_BYTES // 2
    monkeypatch.setattr(gathering_module, "MAX_BYTES", 1 << 30)
    monkeypatch.setattr(writer_module, "REWIND_SECONDS", 0.0)
    wait_until(lambda: not writer.step() and len(Store(tmp_path)["demo"]) == 1, "read again, the record is complete")
    assert same(Store(tmp_path)["demo"]["prompt-0"], record)
    assert stream.length() == 0
    stream.drop()
