"""Payloads and frames taken apart and put together again with something wrong in them."""

import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from raylens.storage.frame import VERSION
from raylens.storage.payload import encode_payload
from raylens.storage.record import Failure, Record

Change = Callable[[dict[str, Any]], Any]


def pack(value: Any) -> bytes:
    """Msgpack as the product writes it."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def make_frame(run: str, body: bytes = b"body", /, **changes: Any) -> bytes:
    """A frame with a matching checksum, and then the changes; a field changed to None is left out."""
    fields = {"version": VERSION, "run": run, "index": 0, "attempt": b"8 bytes.", "chunk": 0, "chunks": 1}
    fields |= {"crc32": zlib.crc32(body), "body": body, **changes}
    return pack({name: value for name, value in fields.items() if value is not None})


def open_payload(payload: bytes) -> dict[str, Any]:
    """The payload with its head as a dictionary and its taps' arrays as bytes that are not compressed."""
    value: dict[str, Any] = msgpack.unpackb(payload)
    value["head"] = msgspec.json.decode(zstandard.decompress(value["head"]))
    for tap in value["taps"].values():
        for name in ("ids", "logprobs", "logsumexp", "entropy"):
            tap[name] = zstandard.decompress(tap[name])
        for stat in tap["stats"].values():
            stat["data"] = zstandard.decompress(stat["data"])
    return value


def close_payload(value: dict[str, Any]) -> bytes:
    """A payload from what ``open_payload`` gave; bytes named ``raw`` are taken as already compressed."""
    taps = {tap: {name: _closed(part) for name, part in parts.items()} for tap, parts in value["taps"].items()}
    head = value["head"]
    packed = head.data if isinstance(head, Raw) else compress(msgspec.json.encode(head))
    return pack({**value, "head": packed, "taps": taps})


def _closed(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _closed(inner) for name, inner in part.items()}
    if isinstance(part, Raw):
        return part.data
    return compress(part) if isinstance(part, bytes) else part


class Raw:
    """Bytes to be put into a payload as they are."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def compress(data: bytes) -> bytes:
    return zstandard.compress(data, 1)


def shuffle(values: NDArray[Any]) -> bytes:
    """An array as the wire has it: first all first bytes, then all second bytes, and so on."""
    flat = np.ascontiguousarray(values)
    return flat.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes()


def changed_payload(outcome: Record | Failure, change: Change) -> bytes:
    """The payload of an outcome after ``change`` was done to its parts."""
    value = open_payload(encode_payload(outcome))
    change(value)
    return close_payload(value)


def declare(compressed: bytes, size: int) -> bytes:
    """The zstd frame with another content size in its header."""
    header = zstandard.frame_header_size(compressed)
    return compressed[:4] + b"\xe0" + size.to_bytes(8, "little") + compressed[header:]
