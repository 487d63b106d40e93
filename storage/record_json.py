"""The JSON form of records and failures: one line each (docs/FORMAT.md, section Record)."""

from functools import cache
from typing import Any, Literal

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from raylens.storage.errors import StoreError
from raylens.storage.generated import Generated
from raylens.storage.json_values import unheld
from raylens.storage.ledger import Index
from raylens.storage.record import FIELDS, MAX_VOCABULARY, Failure, Metadata, Record, TapLens
from raylens.storage.statistics import Form, misfit
from raylens.storage.taps import is_tap


class _TapJson(msgspec.Struct):
    ids: list[list[list[int]]]
    logprobs: list[list[list[float]]]
    logsumexp: list[list[float]]
    entropy: list[list[float]]
    layers: list[int] | None = None
    stats: dict[str, list[list[Any]]] = {}


class _ErrorJson(msgspec.Struct):
    kind: str
    message: str


class _OutcomeJson(msgspec.Struct):
    id: str
    index: Index
    text: str = ""
    token_ids: list[int] = []
    tokens: list[str] = []
    positions: list[int] = []
    layers: list[int] = []
    logprobs: Literal["float16", "float32"] = "float16"
    tracked: list[int] = []
    stats: dict[str, Literal["float32", "uint32"]] = {}
    taps: dict[str, _TapJson] = {}
    metadata: Metadata = {}
    truncated_from: int | None = None
    generated: Generated | None = None
    error: _ErrorJson | None = None


_DECODER = msgspec.json.Decoder(_OutcomeJson)


@cache
def _shortest_decimals() -> NDArray[np.float64]:
    """For each of the 65,536 float16 values, the float64 whose shortest decimal is the float16's own (about 4 digits)."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return np.array([float(str(value)) for value in values])


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """Values that JSON prints with the digits they have."""
    if values.dtype == np.float16:
        return _shortest_decimals()[np.ascontiguousarray(values).view(np.uint16)]
    return np.ascontiguousarray(values)


def _tap_dict(tap: TapLens, layers: list[int]) -> dict[str, Any]:
    out: dict[str, Any] = {} if list(tap.layers) == layers else {"layers": list(tap.layers)}
    for name in ("ids", "logprobs", "logsumexp", "entropy"):
        out[name] = _compact(getattr(tap, name))
    if tap.stats:
        out["stats"] = {name: _compact(values) for name, values in tap.stats.items()}
    return out


def _record_dict(record: Record) -> dict[str, Any]:
    tap = next(iter(record.taps.values()))
    out: dict[str, Any] = {
        "id": record.id,
        "index": record.index,
        "text": record.text,
        "token_ids": record.token_ids,
        "tokens": record.tokens,
        "positions": record.positions,
        "layers": record.layers,
        "logprobs": str(tap.logprobs.dtype),
    }
    if record.tracked:
        out["tracked"] = record.tracked
    if stats := record.statistics:
        out["stats"] = {name: str(values.dtype) for name, values in stats.items()}
    out["taps"] = {name: _tap_dict(tap, record.layers) for name, tap in record.taps.items()}
    if record.truncated_from is not None:
        out["truncated_from"] = record.truncated_from
    if record.generated is not None:
        out["generated"] = msgspec.to_builtins(record.generated)
    out["metadata"] = record.metadata
    return out


def encode_outcome(outcome: Record | Failure) -> bytes:
    """One line of JSON with its newline.

    Raises:
        StoreError: metadata that JSON tools do not read: integers over 64 bits, over 250 levels.
    """
    if isinstance(outcome, Record):
        value = _record_dict(outcome)
    else:
        error = {"kind": outcome.kind, "message": outcome.message}
        value = {"id": outcome.id, "index": outcome.index, "error": error, "metadata": outcome.metadata}
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        raise StoreError(f"cannot be stored as JSON: {error}") from error


def _tap_from_json(tap: _TapJson, value: _OutcomeJson) -> TapLens:
    lens = TapLens(
        layers=tuple(value.layers if tap.layers is None else tap.layers),
        ids=np.array(tap.ids, dtype=np.uint32),
        # float16 decimals round back to the very same float16, so reading gives what the actor sent
        logprobs=np.array(tap.logprobs, dtype=np.float64).astype(value.logprobs),
        logsumexp=np.array(tap.logsumexp, dtype=np.float32),
        entropy=np.array(tap.entropy, dtype=np.float32),
        stats={name: np.array(values, dtype=value.stats[name]) for name, values in tap.stats.items()},
    )
    place = (len(lens.layers), len(value.positions))
    if lens.ids.shape[:2] != place or lens.ids.ndim != 3 or lens.logprobs.shape != lens.ids.shape:
        raise ValueError(f"ids or logprobs are not [layers][positions][k] for {place[0]} layers and {place[1]} positions")
    if lens.logsumexp.shape != place or lens.entropy.shape != place:
        raise ValueError(f"logsumexp or entropy is not [layers][positions] for {place[0]} layers and {place[1]} positions")
    if not lens.ids.size or (lens.logprobs > 0).any():
        raise ValueError("no token at a place, or a logprob above 0")
    for name, values in lens.stats.items():
        if wrong := misfit(name, Form(value.stats[name], each_tracked=values.ndim == 3)):
            raise ValueError(wrong)
        if values.shape not in {place, (*place, len(value.tracked))}:
            raise ValueError(f"{name} is not [layers][positions] or [layers][positions][tracked]")
    return lens


def decode_outcome(line: bytes, vocabulary_size: int = MAX_VOCABULARY) -> Record | Failure:
    """The record or failure in one line of JSON.

    Args:
        vocabulary_size: of the run, where it is known: ids of tokens are below it.

    Raises:
        StoreError: the line is not a record of this format.
    """
    try:
        value = _DECODER.decode(line)
        if wrong := unheld(value.metadata):
            raise ValueError(f"metadata: {wrong}")
        if value.error is not None:
            return Failure(value.id, value.index, value.error.kind, value.error.message, value.metadata)
        with np.errstate(all="ignore", over="raise"):
            taps = {name: _tap_from_json(tap, value) for name, tap in value.taps.items()}
        record = Record(**{name: getattr(value, name) for name in FIELDS}, taps=taps)
        if wrong := record.fault(vocabulary_size):
            raise ValueError(wrong)
        if not taps or not all(map(is_tap, taps)):
            raise ValueError(f"its taps are {', '.join(taps)[:80] or 'none'}")
        if any(int(tap.ids.max()) >= vocabulary_size for tap in taps.values()):
            raise ValueError(f"an id outside the vocabulary of {vocabulary_size}")
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise StoreError(f"not a record of this format: {error}") from error
    return record
