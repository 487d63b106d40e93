"""Thousands of entries broken on purpose: each is refused with a reason or is a valid outcome, and none stops a run."""

import random
import zlib
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zstandard

from raylens.storage import writer as writer_module
from raylens.storage.errors import FrameError, StoreError
from raylens.storage.frame import Frame, decode_frame
from raylens.storage.payload import decode_payload, encode_payload
from raylens.storage.record import Failure, Record
from raylens.storage.record_json import decode_outcome, encode_outcome
from raylens.storage.server import EmbeddedServer
from raylens.storage.statistics import STATISTICS
from raylens.storage.store import Store
from raylens.storage.stream import Stream
from raylens.storage.tables import lens_table, prompts_table
from raylens.storage.writer import Writer
from tests.builders import VOCABULARY_SIZE, make_failure, make_frames, make_generated, make_record, make_run, same
from tests.wire import Raw, close_payload, compress, declare, make_frame, open_payload, pack

RUN = "0123456789abcdef"
PROMPTS = 24
PER_SEED = 1500
SEEDS = range(8)


def outcome_of(index: int) -> Record | Failure:
    """A small valid outcome, of another kind for each index."""
    if index % 6 == 5:
        return make_failure(index)
    taps = [("resid_post",), ("attn_out", "resid_post"), ("resid_pre", "attn_out", "mlp_out")][index % 3]
    dtype = ("float16", "float32")[index % 2]
    return make_record(
        index,
        taps=taps,
        k=1 + index % 4,
        dtype=dtype,
        metadata={"a": [1, "b"]},
        stats=index % 3 > 0,
        tracked=index % 3,
        generated=make_generated() if index % 6 > 2 else None,
    )


class Forger:
    """Makes hostile entries, from a seed, that claim to be of one run."""

    def __init__(self, seed: int, run: str = RUN) -> None:
        self._random = random.Random(seed)
        self._run = run
        self._ways: list[Callable[[int], bytes]] = [
            self._flipped,
            self._cut,
            self._spliced,
            self._noise,
            self._random_msgpack,
            self._random_frame_field,
            self._broken_payload,
            self._random_payload_field,
            self._random_head_field,
            self._broken_head_text,
            self._random_tap_field,
            self._broken_array,
            self._lying_array,
            self._random_statistic,
        ]

    def entry(self, index: int) -> bytes:
        """One hostile entry that is aimed at a prompt."""
        return self._random.choice(self._ways)(index)

    def _valid(self, index: int) -> bytes:
        return make_frames(outcome_of(index), self._run, self._random.randbytes(8))[0]

    def _framed(self, index: int, payload: bytes) -> bytes:
        """A payload in a frame whose checksum is right, so that only the payload can be at fault."""
        return make_frame(self._run, payload, index=index, attempt=self._random.randbytes(8))

    def _flip(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._random.choice([1, 1, 2, 8])):
            if changed:
                changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _flipped(self, index: int) -> bytes:
        return self._flip(self._valid(index))

    def _cut(self, index: int) -> bytes:
        data = self._valid(index)
        start = self._random.choice([0, 0, self._random.randrange(len(data))])
        return data[start : self._random.randrange(len(data))]

    def _spliced(self, index: int) -> bytes:
        one, other = self._valid(index), self._valid(self._random.randrange(PROMPTS))
        return one[: self._random.randrange(len(one))] + other[self._random.randrange(len(other)) :]

    def _noise(self, index: int) -> bytes:
        return self._random.randbytes(self._random.choice([0, 1, 5, 60, 2000]))

    def _value(self, depth: int = 0) -> Any:
        kind = self._random.randrange(12 if depth < 3 else 9)
        size = self._random.choice([0, 1, 3, 8, 40])
        if kind == 9:
            return [self._value(depth + 1) for _ in range(min(size, 8))]
        if kind == 10:
            return {f"key{number}": self._value(depth + 1) for number in range(min(size, 8))}
        if kind == 11:
            return msgpack.ExtType(self._random.randrange(128), self._random.randbytes(size))
        numbers = [0, 1, -1, 3, 255, 1 << 31, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1]
        return [
            None,
            True,
            self._random.choice(numbers),
            self._random.choice([0.0, -1.5, float("nan"), float("inf"), 1e308]),
            "x" * size,
            "日🎉\0/.." * size,
            self._random.randbytes(size),
            -self._random.randrange(1 << 20),
            self._random.randrange(1 << 40),
        ][kind]

    def _random_msgpack(self, index: int) -> bytes:
        return pack(self._value())

    def _random_frame_field(self, index: int) -> bytes:
        value = msgpack.unpackb(self._valid(index))
        field = self._random.choice([*value, "another"])
        value[field] = self._value()
        if field == "body" and isinstance(value["body"], bytes):
            value["crc32"] = zlib.crc32(value["body"])
        return pack(value)

    def _broken_payload(self, index: int) -> bytes:
        payload = encode_payload(outcome_of(index))
        way = self._random.randrange(3)
        if way == 0:
            return self._framed(index, self._flip(payload))
        if way == 1:
            return self._framed(index, payload[: self._random.randrange(len(payload))])
        return self._framed(index, payload + self._random.randbytes(3))

    def _random_payload_field(self, index: int) -> bytes:
        value = msgpack.unpackb(encode_payload(outcome_of(index)))
        value[self._random.choice(["head", "taps", "another"])] = self._value()
        return self._framed(index, pack(value))

    def _random_head_field(self, index: int) -> bytes:
        value = open_payload(encode_payload(outcome_of(index)))
        fields = [*value["head"], "error", "truncated_from", "metadata", "unknown"]
        new = self._random.choice(
            [self._json_value(), [self._json_value()] * self._random.randrange(5), {"a": self._json_value()}]
        )
        where, among = value["head"], fields
        if "generated" in where and self._random.random() < 0.5:
            where, among = where["generated"], [*where["generated"], "sample"]
        where[self._random.choice(among)] = new
        return self._framed(index, close_payload(value))

    def _json_value(self) -> Any:
        deep: Any = 1
        for _ in range(self._random.choice([10, 300, 600])):
            deep = [deep]
        return self._random.choice(
            [None, 0, 1, -1, 499, 500, 1 << 31, 1 << 64, -(1 << 80), 1.5, 1e300, "", "p", "\0", True, deep]
        )

    def _broken_head_text(self, index: int) -> bytes:
        value = open_payload(encode_payload(outcome_of(index)))
        value["head"] = Raw(compress(self._flip(msgspec.json.encode(value["head"]))))
        return self._framed(index, close_payload(value))

    def _tap(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        value = open_payload(encode_payload(outcome_of(index - 1 if index % 6 == 5 else index)))
        return value, self._random.choice(list(value["taps"].values()))

    def _random_tap_field(self, index: int) -> bytes:
        value, tap = self._tap(index)
        name = self._random.choice([*tap, "another"])
        tap[name] = self._random.choice([self._value(), [self._random.randrange(-2, 6) for _ in range(3)], "float16", "float32"])
        return self._framed(value["head"]["index"], close_payload(value))

    def _random_statistic(self, index: int) -> bytes:
        value, tap = self._tap(index)
        name = self._random.choice([*tap["stats"], *STATISTICS, "../x", "a" * 100, "new"])
        stat = tap["stats"].setdefault(name, {"shape": [1], "dtype": "uint32", "data": bytes(4)})
        if self._random.randrange(2):  # arrays that fit the record, whether or not they fit the statistic
            shape = [*tap["shape"][:2], *[len(value["head"].get("tracked", []))] * self._random.randrange(2)]
            tap["stats"][name] = {
                "shape": shape,
                "dtype": self._random.choice(["float32", "uint32"]),
                "data": bytes(4 * prod(shape)),
            }
            return self._framed(value["head"]["index"], close_payload(value))
        field = self._random.choice(["shape", "dtype", "data"])
        stat[field] = {
            "shape": [self._random.choice([0, 1, 2, 4, -1, 1 << 40]) for _ in range(self._random.randrange(5))],
            "dtype": self._random.choice(["float32", "uint32", "float16", "object", 7]),
            "data": self._random.choice([self._flip(stat["data"]), Raw(b""), Raw(stat["data"]), self._value()]),
        }[field]
        return self._framed(value["head"]["index"], close_payload(value))

    def _broken_array(self, index: int) -> bytes:
        value, tap = self._tap(index)
        name = self._random.choice(["ids", "logprobs", "logsumexp", "entropy"])
        if self._random.randrange(2):
            tap[name] = self._flip(tap[name])
        else:
            special = np.array([np.nan, np.inf, -np.inf, 1.0, -1.0, -65504.0, 0.0], np.float32)
            tap[name] = self._random.choice(special).tobytes() * (len(tap[name]) // 4)
        return self._framed(value["head"]["index"], close_payload(value))

    def _lying_array(self, index: int) -> bytes:
        value, tap = self._tap(index)
        name = self._random.choice(["ids", "logprobs", "logsumexp", "entropy"])
        data = tap[name]
        tap[name] = Raw(
            self._random.choice(
                [
                    lambda: declare(compress(data), self._random.choice([0, 1, len(data) + 1, 1 << 20, 1 << 62, (1 << 64) - 1])),
                    lambda: declare(compress(bytes(1 << 20)), len(data)),
                    lambda: compress(bytes(self._random.randrange(1 << 16))),
                    lambda: zstandard.ZstdCompressor(write_content_size=False).compress(data),
                    lambda: b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data,
                    lambda: self._flip(compress(data)),
                    lambda: compress(data) * 2,
                ]
            )()
        )
        return self._framed(value["head"]["index"], close_payload(value))


def decode(data: bytes, run: str = RUN) -> tuple[Frame | None, Record | Failure | None]:
    """The frame, if it is one; and its outcome, if it is whole and valid. Anything but FrameError gets out."""
    try:
        frame = decode_frame(data, run, PROMPTS)
    except FrameError:
        return None, None
    if frame.chunks > 1:
        return frame, None
    try:
        return frame, decode_payload(frame.body, frame.index, VOCABULARY_SIZE)
    except FrameError:
        return frame, None


def can_be_stored(outcome: Record | Failure) -> bool:
    """Whether JSON can hold it: no integers over 64 bits and no endless nesting in its metadata."""
    try:
        encode_outcome(outcome)
    except StoreError:
        return False
    return True


def is_sound(outcome: Record | Failure) -> bool:
    """Whether an outcome comes back from another trip over the wire and, where JSON can hold it, from disk."""
    assert same(decode_payload(encode_payload(outcome), outcome.index, VOCABULARY_SIZE), outcome)
    if not can_be_stored(outcome):
        return outcome.metadata != {}
    assert len(prompts_table([outcome])) == 1
    if isinstance(outcome, Record):
        assert len(lens_table([outcome])) > 0
    return same(decode_outcome(encode_outcome(outcome)), outcome)


@pytest.mark.parametrize("seed", SEEDS)
def test_only_frame_error_or_a_valid_outcome_comes_out(seed: int) -> None:
    """Of 12,000 forged entries every one is refused by FrameError or decodes to an outcome that obeys every rule."""
    forger = Forger(seed)
    results: Counter[str] = Counter()
    for number in range(PER_SEED):
        frame, outcome = decode(forger.entry(number % PROMPTS))
        if outcome is not None:
            assert is_sound(outcome)
        results["no frame" if frame is None else "no outcome" if outcome is None else "outcome"] += 1
    # the forger reaches every depth: entries that are no frames, frames without an outcome, and harmless changes
    assert results["no frame"] > PER_SEED // 4
    assert results["no outcome"] > PER_SEED // 4
    assert results["outcome"] > PER_SEED // 50


def test_a_run_survives_hostile_entries(
    server: EmbeddedServer, open_stream: Callable[..., Stream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of forged entries among a run's own: every prompt is stored as sent, every refused entry is in quarantine."""
    monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "BLOCK_MS", None)
    folder, manifest = make_run(tmp_path, prompts=PROMPTS)
    stream = open_stream(server.url, manifest.uid)
    stream.create()
    forger = Forger(99, manifest.uid)
    refused: dict[str, bytes] = {}
    per_prompt = 600 // PROMPTS
    for index in range(PROMPTS):
        for _ in range(per_prompt):
            data = forger.entry(index)
            frame, outcome = decode(data, manifest.uid)
            if frame is not None and frame.index < index:
                continue  # would be dropped as known, whatever it holds
            if outcome is not None and can_be_stored(outcome):
                continue  # would be this prompt's record
            entry = stream.publish(data)
            if frame is None or frame.chunks == 1:
                refused[entry] = data
        for data in make_frames(outcome_of(index), manifest.uid):
            stream.publish(data)

    writer = Writer(folder, stream)
    writer.take_over()
    while writer.step():
        pass
    writer.commit()

    run = Store(tmp_path)["demo"]
    assert len(run) == PROMPTS
    assert all(same(run[f"prompt-{index}"], outcome_of(index)) for index in range(PROMPTS))
    quarantined = run.quarantine()
    assert len(refused) > 300
    assert {one.entry for one in quarantined} == refused.keys()
    assert len(quarantined) == len(refused)
    assert all(one.reason for one in quarantined)
    assert {path.stem for path in folder.quarantine.glob("*.bin")} <= refused.keys()
    assert stream.length() == 0
    stream.drop()
