"""What frames carry: an outcome as one payload, a JSON head and compressed arrays (docs/FORMAT.md, section Frame).

Decoding trusts nothing: sizes are tested before anything is allocated, types and values before anything is used.
"""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import zstandard
from numpy.typing import DTypeLike, NDArray

from raylens.storage.errors import FrameError
from raylens.storage.frame import pack, unpack
from raylens.storage.generated import Generated
from raylens.storage.record import (
    FAILURE_KINDS,
    FIELDS,
    MAX_ID,
    MAX_LAYERS,
    MAX_MESSAGE,
    Failure,
    Metadata,
    Record,
    TapLens,
    ascend,
)
from raylens.storage.statistics import Form, misfit
from raylens.storage.taps import MAX_HEADS, TAPS, is_tap
from raylens.storage.zstd import zstd

#: Bytes of the JSON head (text, ids, tokens, metadata) of one outcome, decompressed: two of the corpus's largest rows.
MAX_HEAD_BYTES = 128 << 20
#: Bytes of all arrays of one outcome, decompressed; they compress by half, so a full payload has about so many.
MAX_ARRAY_BYTES = 512 << 20
#: Taps of a record, and statistics of each.
MAX_TAPS, MAX_STATS = len(TAPS) + MAX_HEADS, 16

_ARRAYS = {"ids": "<u4", "logprobs": "", "logsumexp": "<f4", "entropy": "<f4"}
_STAT_TYPES = {"float32": "<f4", "uint32": "<u4"}
_LOGPROB_TYPES = {"float16": "<f2", "float32": "<f4"}
_LOGPROB_BYTES = {"float16": 2, "float32": 4}


# bounded, as the ledger has them of every prompt, and a reader has all of the ledger
_Id = Annotated[str, msgspec.Meta(max_length=MAX_ID)]
_Kind = Annotated[str, msgspec.Meta(pattern=rf"^(?:{'|'.join(FAILURE_KINDS)})\Z")]
_Message = Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE)]


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    id: _Id
    index: int
    metadata: Metadata
    text: str = ""
    token_ids: list[int] = []
    tokens: list[str] = []
    positions: list[int] = []
    layers: list[int] = []
    truncated_from: int | None = None
    tracked: list[int] = []
    generated: Generated | None = None
    error: tuple[_Kind, _Message] | None = None


class _Stat(msgspec.Struct, frozen=True):
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=3)]
    dtype: Literal["float32", "uint32"]
    data: bytes


class _Tap(msgspec.Struct, frozen=True):
    layers: Annotated[list[int], msgspec.Meta(max_length=MAX_LAYERS)]
    shape: tuple[int, int, int]
    dtype: Literal["float16", "float32"]
    ids: bytes
    logprobs: bytes
    logsumexp: bytes
    entropy: bytes
    stats: Annotated[dict[str, _Stat], msgspec.Meta(max_length=MAX_STATS)] = {}


class _Payload(msgspec.Struct, frozen=True):
    head: bytes
    taps: Annotated[dict[str, _Tap], msgspec.Meta(max_length=MAX_TAPS)]


_PAYLOAD = msgspec.msgpack.Decoder(_Payload)


def encode_payload(outcome: Record | Failure) -> bytes:
    """The payload of one record or failure.

    Raises:
        FrameError: it is larger than ``decode_payload`` takes.
    """
    if isinstance(outcome, Failure):
        head = _Head(outcome.id, outcome.index, outcome.metadata, error=(outcome.kind, outcome.message[:MAX_MESSAGE]))
        taps = {}
    else:
        head = _Head(**{name: getattr(outcome, name) for name in FIELDS})
        taps = {name: _pack_tap(tap) for name, tap in outcome.taps.items()}
    encoded = msgspec.json.encode(head)
    if len(encoded) > MAX_HEAD_BYTES:
        raise FrameError(f"text, tokens and metadata of {len(encoded)} bytes are over the limit of {MAX_HEAD_BYTES}")
    _check_size(taps)
    payload = _Payload(zstd.compress(encoded), taps)
    return pack(payload)


def decode_payload(payload: bytes, index: int, vocabulary_size: int) -> Record | Failure:
    """The outcome in a payload, checked against its frame's prompt index and the run's vocabulary.

    Raises:
        FrameError: with the reason.
    """
    packed = unpack(payload, _PAYLOAD)
    try:
        head = msgspec.json.decode(_inflate(packed.head, limit=MAX_HEAD_BYTES), type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"head: {error}") from error
    if head.index != index:
        raise FrameError(f"head is of prompt {head.index}, frame of prompt {index}")
    if head.error is not None:
        return Failure(head.id, head.index, head.error[0], head.error[1], head.metadata)
    record = Record(**{name: getattr(head, name) for name in FIELDS}, taps={})
    if wrong := record.fault(vocabulary_size):
        raise FrameError(wrong)
    _check_taps(packed.taps, record, vocabulary_size)
    return replace(record, taps={name: _unpack_tap(tap, vocabulary_size) for name, tap in packed.taps.items()})


def _check_taps(taps: dict[str, _Tap], record: Record, vocabulary_size: int) -> None:
    """Everything that can be said before an array is inflated."""
    if not taps:
        raise FrameError("record without taps")
    if unknown := sorted(tap for tap in taps if not is_tap(tap)):
        raise FrameError(f"unknown tap {unknown[0][:80]!r}")
    if len({tap.dtype for tap in taps.values()}) > 1:
        raise FrameError("taps differ in the type of their logprobs")
    kinds = {(name, stat.dtype, len(stat.shape)) for tap in taps.values() for name, stat in tap.stats.items()}
    if len(kinds) > len({name for name, *_ in kinds}):
        raise FrameError("taps differ in the type or axes of a statistic")
    positions = len(record.positions)
    for tap in taps.values():
        n_layers, n_positions, k = tap.shape
        if n_layers != len(tap.layers) or n_positions != positions or not 1 <= k <= vocabulary_size:
            raise FrameError(f"shape {tap.shape} does not fit {len(tap.layers)} layers and {positions} positions")
        if not ascend(tap.layers, below=MAX_LAYERS):
            raise FrameError("layers of a tap are not ascending numbers")
        _check_stats(tap, len(record.tracked))
    _check_size(taps)


def _check_stats(tap: _Tap, tracked: int) -> None:
    places = tap.shape[:2]
    for name, stat in tap.stats.items():
        if stat.shape not in {places, (*places, tracked)}:
            raise FrameError(f"shape {stat.shape} of {name[:80]} does not fit its tap and {tracked} tracked tokens")
        if wrong := misfit(name, Form(stat.dtype, each_tracked=len(stat.shape) == 3)):
            raise FrameError(wrong)


def inflated_size(payload: bytes) -> int:
    """Bytes that ``decode_payload`` inflates, told by headers and shapes; more than it does of what it will refuse."""
    try:
        packed = unpack(payload, _PAYLOAD)
        head = zstandard.get_frame_parameters(packed.head).content_size
    except (FrameError, zstandard.ZstdError):
        return 0
    return min(max(head, 0), MAX_HEAD_BYTES) + min(max(_array_bytes(packed.taps), 0), MAX_ARRAY_BYTES)


def _array_bytes(taps: dict[str, _Tap]) -> int:
    size = 0
    for tap in taps.values():
        layers, positions, k = tap.shape
        size += layers * positions * (k * (4 + _LOGPROB_BYTES[tap.dtype]) + 8)
        size += sum(4 * math.prod(stat.shape) for stat in tap.stats.values())
    return size


def _check_size(taps: dict[str, _Tap]) -> None:
    if (size := _array_bytes(taps)) > MAX_ARRAY_BYTES:
        raise FrameError(f"arrays of {size} bytes are over the limit of {MAX_ARRAY_BYTES}; choose fewer positions")


def _inflate(data: bytes, limit: int, expected: int | None = None) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or size > limit:
            raise FrameError(f"compressed part declares {size} bytes, limit {limit}")
        if expected is not None and size != expected:
            raise FrameError(f"compressed part declares {size} bytes, its shape needs {expected}")
        raw = zstd.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"compressed part: {error}") from error
    return raw


def _deflate(values: NDArray[Any], dtype: DTypeLike) -> bytes:
    """Byte-shuffled, so that bytes of like magnitude lie together, then zstd level 1 (46 times smaller than plain JSON)."""
    flat = np.ascontiguousarray(values, dtype=dtype)
    shuffled = flat.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes()
    return zstd.compress(shuffled)


def _restore(data: bytes, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    itemsize = np.dtype(dtype).itemsize
    count = math.prod(shape)
    raw = _inflate(data, limit=MAX_ARRAY_BYTES, expected=count * itemsize)
    unshuffled = np.frombuffer(raw, dtype=np.uint8).reshape(itemsize, count).T
    return np.ascontiguousarray(unshuffled).view(dtype).reshape(shape)


def _pack_tap(tap: TapLens) -> _Tap:
    dtype: Literal["float16", "float32"] = "float16" if tap.logprobs.dtype == np.float16 else "float32"
    layers, positions, k = tap.ids.shape
    arrays = {name: _deflate(getattr(tap, name), kind or _LOGPROB_TYPES[dtype]) for name, kind in _ARRAYS.items()}
    stats = {name: _pack_stat(values) for name, values in tap.stats.items()}
    return _Tap(layers=list(tap.layers), shape=(layers, positions, k), dtype=dtype, stats=stats, **arrays)


def _pack_stat(values: NDArray[Any]) -> _Stat:
    dtype: Literal["float32", "uint32"] = "uint32" if values.dtype == np.uint32 else "float32"
    return _Stat(values.shape, dtype, _deflate(values, _STAT_TYPES[dtype]))


def _unpack_tap(tap: _Tap, vocabulary_size: int) -> TapLens:
    place = tap.shape[:2]
    ids = _restore(tap.ids, "<u4", tap.shape)
    logprobs = _restore(tap.logprobs, _LOGPROB_TYPES[tap.dtype], tap.shape)
    logsumexp = _restore(tap.logsumexp, "<f4", place)
    entropy = _restore(tap.entropy, "<f4", place)
    if ids.size and int(ids.max()) >= vocabulary_size:
        raise FrameError(f"token id {int(ids.max())} is outside the vocabulary of {vocabulary_size}")
    if not (np.isfinite(logprobs).all() and (logprobs <= 0).all() and (logprobs[..., 1:] <= logprobs[..., :-1]).all()):
        raise FrameError("logprobs are not sorted finite numbers at or below 0")
    if not (np.isfinite(logsumexp).all() and np.isfinite(entropy).all()):
        raise FrameError("logsumexp or entropy is not finite")
    stats = {name: _unpack_stat(stat) for name, stat in tap.stats.items()}
    return TapLens(tuple(tap.layers), ids, logprobs, logsumexp, entropy, stats)


def _unpack_stat(stat: _Stat) -> NDArray[Any]:
    values = _restore(stat.data, _STAT_TYPES[stat.dtype], stat.shape)
    if stat.dtype == "uint32" or np.isfinite(values).all():
        return values
    if np.isinf(values).any():
        raise FrameError("a statistic is infinite")
    # one NaN of the many, as a reader of the JSON gets it
    return np.where(np.isnan(values), np.float32(np.nan), values)
