"""The JSON of records: exact, short, and refused when it is not a record."""

import copy
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from numpy.typing import NDArray

from raylens.storage.errors import StoreError
from raylens.storage.record import Failure, Record, TapLens
from raylens.storage.record_json import decode_outcome, encode_outcome
from tests.builders import make_failure, make_generated, make_record, same
from tests.strategies import failures, records


@given(records() | failures())
def test_every_outcome_reads_back(outcome: Any) -> None:
    """A record or failure becomes one line, and the line becomes the same record or failure, to the last bit."""
    line = encode_outcome(outcome)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert same(decode_outcome(line), outcome)


@given(records())
def test_the_line_is_plain_json_without_nulls(record: Any) -> None:
    """Any JSON reader takes the line; only a statistic without a value is null, and the shapes are [L][P][k]."""
    value = orjson.loads(encode_outcome(record))
    for name, tap in record.taps.items():
        stats = value["taps"][name].pop("stats", {})
        assert {stat: np.array(values).shape for stat, values in stats.items()} == {
            stat: values.shape for stat, values in tap.stats.items()
        }
        if stats:
            assert all(row[-1] is None for row in stats["next_logprob"])
    metadata = value.pop("metadata")
    assert metadata == record.metadata
    assert b"null" not in orjson.dumps({key: value[key] for key in value if key not in ("id", "text", "tokens")})
    assert value["token_ids"] == record.token_ids
    for name, tap in record.taps.items():
        found = value["taps"][name]
        assert np.array(found["ids"]).tolist() == tap.ids.tolist()
        assert np.array(found["logprobs"]).shape == tap.ids.shape
        assert np.array(found["entropy"]).shape == tap.ids.shape[:2]
        assert found.get("layers", record.layers) == list(tap.layers)


def with_logprobs(logprobs: NDArray[Any]) -> Any:
    """A record whose one tap has these logprobs, [1, 1, k]."""
    row = logprobs.reshape(1, 1, -1)
    zeros = np.zeros((1, 1), np.float32)
    record = make_record(tokens=1, layers=(0,), taps=())
    record.taps["resid_post"] = TapLens((0,), np.zeros(row.shape, np.uint32), row, zeros, zeros)
    return record


def all_logprobs() -> NDArray[np.float16]:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return values[np.isfinite(values) & (values <= 0)]


def test_every_float16_is_exact_and_short() -> None:
    """Each of the 31,745 finite float16 values at or below 0 reads back bit for bit, and none takes over 11 characters."""
    record = with_logprobs(all_logprobs())
    line = encode_outcome(record)
    assert same(decode_outcome(line), record)
    start = line.index(b'"logprobs":[[[') + len(b'"logprobs":[[[')
    written = line[start : line.index(b"]", start)].split(b",")
    assert max(map(len, written)) <= 11
    usual = [len(number) for number, value in zip(written, all_logprobs(), strict=True) if -100 <= value <= -0.01]
    assert max(usual) <= 9
    assert sum(usual) / len(usual) < 8


def test_a_program_that_has_numpy_raise_reads_what_is_there() -> None:
    """The least float16 numbers are below those that float16 holds in full, which numpy takes for an underflow."""
    record = with_logprobs(all_logprobs())
    with np.errstate(all="raise"):
        assert same(decode_outcome(encode_outcome(record)), record)


def test_float32_is_exact() -> None:
    """Float32 logprobs read back bit for bit, from the smallest to the largest."""
    rng = np.random.default_rng(0)
    values = np.concatenate([-rng.exponential(5, 2000), -(10.0 ** rng.uniform(-44, 38, 2000)), [0.0, -0.0]])
    record = with_logprobs(values.astype(np.float32))
    assert same(decode_outcome(encode_outcome(record)), record)


def test_shared_layers_are_written_once() -> None:
    """A tap names its layers only where they are not the record's."""
    value = orjson.loads(encode_outcome(make_record(layers=(2, 5), taps=("resid_pre", "resid_post"))))
    assert value["taps"]["resid_pre"]["layers"] == [0]
    assert "layers" not in value["taps"]["resid_post"]


def test_the_documented_fields() -> None:
    """The names of the fields, which are a promise to readers, and what an uncut prompt leaves out."""
    value = orjson.loads(encode_outcome(make_record()))
    assert list(value) == ["id", "index", "text", "token_ids", "tokens", "positions", "layers", "logprobs", "taps", "metadata"]
    assert orjson.loads(encode_outcome(make_record(truncated_from=9)))["truncated_from"] == 9
    generated = orjson.loads(encode_outcome(make_record(generated=make_generated())))["generated"]
    assert list(generated) == ["start", "finish", "text", "logprobs", "sampling_logprobs"]
    sample = orjson.loads(encode_outcome(make_record(generated=make_generated(sample=2))))["generated"]["sample"]
    assert sample == 2
    assert orjson.loads(encode_outcome(make_failure(3))) == {
        "id": "prompt-3",
        "index": 3,
        "error": {"kind": "model", "message": "NaN"},
        "metadata": {"a": 1},
    }


@pytest.mark.parametrize("metadata", [{"n": 1 << 70}, {"n": -(1 << 64)}, {"deep": None}])
def test_what_json_tools_cannot_read_is_not_written(metadata: dict[str, Any]) -> None:
    """Integers over 64 bits and endless nesting are refused with a StoreError, never written half."""
    if "deep" in metadata:
        nested: Any = 0
        for _ in range(400):
            nested = [nested]
        metadata = {"deep": nested}
    for outcome in (make_record(metadata=metadata), make_failure(metadata=metadata)):
        with pytest.raises(StoreError, match="cannot be stored as JSON"):
            encode_outcome(outcome)


def changed(**changes: Any) -> bytes:
    """The line of a record with other top-level fields; ``tap`` changes fields of its first tap."""
    value = orjson.loads(encode_outcome(make_record()))
    for name, new in changes.pop("tap", {}).items():
        value["taps"]["attn_out"][name] = new
    value.update(changes)
    return msgspec.json.encode(value)


ONES = np.ones((2, 4, 3)).tolist()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"id": "p"}',
        b'{"id": "\xff", "index": 1}',
        b'{"id": "p", "index": 1, "metadata": {"a": ' + b"[" * 50_000,
        changed(id=7),
        changed(index="one"),
        changed(logprobs="object"),
        changed(logprobs="float128"),
        changed(metadata=[]),
        changed(taps=[]),
        changed(error={"kind": "x"}),
        changed(positions=[0, 1]),
        changed(layers=[0, 1, 2]),
        changed(tap={"ids": ONES[:1]}),
        changed(tap={"ids": [ONES[0], ONES[1][:2]]}),
        changed(tap={"ids": np.ones((2, 4, 2)).tolist()}),
        changed(tap={"ids": np.ones((2, 4, 3), int).tolist(), "layers": [1]}),
        changed(tap={"ids": np.full((2, 4, 3), -1).tolist()}),
        changed(tap={"ids": np.full((2, 4, 3), 1 << 40).tolist()}),
        changed(tap={"ids": [[[1 << 90] * 3] * 4] * 2}),
        changed(tap={"logprobs": np.full((2, 4, 3), -1e300).tolist()}),
        changed(tap={"logprobs": [[[None] * 3] * 4] * 2}),
        changed(tap={"logprobs": []}),
        changed(tap={"entropy": np.full((2, 4), 1e300).tolist()}),
        changed(tap={"entropy": np.ones((2, 5)).tolist()}),
        changed(tap={"logsumexp": np.ones((4, 2)).tolist()}),
        changed(tap={"logsumexp": [[], []]}),
        changed(taps={}),
        changed(positions=[0, 1, 2, 4]),
        changed(positions=[-1, 0, 1, 2]),
        changed(positions=[1, 1, 1, 1]),
        changed(positions=[3, 2, 1, 0]),
        changed(tokens=["a"]),
        changed(tokens=[], token_ids=[]),
        changed(token_ids=[1, 2, 3, -1]),
        changed(token_ids=[1, 2, 3, 1 << 32]),
        changed(tracked=[-1]),
        changed(tracked=[1 << 32]),
        changed(truncated_from=4),
        changed(layers=[]),
        changed(tap={"layers": [3, 0]}),
        changed(tap={"layers": [-1, 0]}),
        changed(tap={"ids": [[[]] * 4] * 2, "logprobs": [[[]] * 4] * 2}),
        changed(stats={"kl": "uint32"}, tap={"stats": {"kl": np.ones((2, 4), int).tolist()}}),
        changed(stats={"a b": "uint32"}, tap={"stats": {"a b": np.ones((2, 4), int).tolist()}}),
    ],
    ids=lambda line: str(len(line)),
)
def test_a_line_that_is_no_record_is_one_clear_error(line: bytes) -> None:
    """Whatever the line holds, the error is a StoreError."""
    with pytest.raises(StoreError, match="not a record of this format"):
        decode_outcome(line)


def test_a_changed_line_that_is_a_record_still_is() -> None:
    """The helper of the test above changes nothing by itself."""
    assert same(decode_outcome(changed()), make_record())


def test_a_failure_is_told_by_its_error() -> None:
    """A line with an error is a failure, whatever else it holds."""
    outcome = decode_outcome(changed(error={"kind": "crash", "message": "died"}))
    assert outcome == Failure("prompt-0", 0, "crash", "died", {})


@given(outcome=records())
def test_records_are_equal_where_all_their_numbers_are(outcome: Record) -> None:
    """With ``==``, as programs and tests of users compare what was read; NaN is no value on both sides."""
    assert decode_outcome(encode_outcome(outcome)) == outcome


@pytest.mark.parametrize("name", ["ids", "logprobs", "logsumexp", "entropy", "stats", "layers"])
def test_records_that_differ_in_a_tap_are_not_equal(name: str) -> None:
    """By one number, or by a statistic that one of them lacks."""
    record = make_record(0, stats=True, taps=("resid_post",))
    lens = record.taps["resid_post"]
    value = getattr(lens, name)
    other: Any = {} if name == "stats" else (0, 4) if name == "layers" else value.copy()
    if isinstance(other, np.ndarray):
        other.flat[-1] += 1
    changed = replace(record, taps={"resid_post": replace(lens, **{name: other})})
    assert changed != record
    assert record == replace(record, taps={"resid_post": replace(lens, **{name: copy.copy(value)})})
    assert lens != name
