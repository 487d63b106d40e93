"""The wire format: what is sent comes back to the last bit, and bytes that are not valid are refused, cheaply."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage import frame as frame_module
from raylens.storage import payload as payload_module
from raylens.storage.errors import FrameError
from raylens.storage.frame import CHUNK_BYTES, MAX_CHUNKS, MAX_FRAME_BYTES, VERSION, decode_frame, split
from raylens.storage.generated import MAX_SAMPLES
from raylens.storage.payload import MAX_ARRAY_BYTES, MAX_HEAD_BYTES, decode_payload, encode_payload, inflated_size
from raylens.storage.record import FAILURE_KINDS, ID_LIMIT, MAX_ID, MAX_MESSAGE, MAX_TRACKED, Failure, Record
from raylens.storage.taps import MAX_HEADS, TAPS, head_tap
from tests.builders import VOCABULARY_SIZE, make_failure, make_frames, make_large_record, make_record, same
from tests.memory import bounded_memory
from tests.strategies import failures, ids, records
from tests.wire import Change, Raw, changed_payload, close_payload, compress, declare, make_frame, open_payload, pack, shuffle

RUN = "0123456789abcdef"
PROMPTS = 10

#: A list of a million empty ones.
EMPTY_LISTS = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x90" * 1_000_000


def through_the_wire(outcome: Record | Failure) -> Record | Failure:
    frames = [decode_frame(data, RUN, PROMPTS) for data in make_frames(outcome, RUN)]
    assert [frame.chunk for frame in frames] == list(range(frames[0].chunks))
    return decode_payload(b"".join(frame.body for frame in frames), outcome.index, VOCABULARY_SIZE)


def refused(data: bytes, reason: str) -> None:
    """Assert that a frame is refused for this reason."""
    with pytest.raises(FrameError, match=reason):
        decode_frame(data, RUN, PROMPTS)


def refused_payload(payload: bytes, reason: str) -> None:
    """Assert that a payload is refused for this reason."""
    with pytest.raises(FrameError, match=reason):
        decode_payload(payload, 0, VOCABULARY_SIZE)


def refused_change(change: Change, reason: str) -> None:
    """Assert that a valid record is refused once ``change`` was done to its parts."""
    refused_payload(changed_payload(make_record(), change), reason)


@given(records() | failures())
def test_every_outcome_comes_back(outcome: Record | Failure) -> None:
    """Records of every shape and failures cross the wire bit for bit."""
    assert same(through_the_wire(outcome), outcome)


@given(ids)
def test_any_id_comes_back(prompt_id: str) -> None:
    """Ids are any text: slashes, 300 characters, emoji."""
    assert through_the_wire(make_record(id=prompt_id)).id == prompt_id
    assert through_the_wire(make_failure(id=prompt_id)).id == prompt_id


def test_nested_metadata_comes_back() -> None:
    """Metadata may be nested 200 levels deep, as the corpus allows, and hold any 64-bit integer."""
    nested: Any = {"small": -(1 << 63), "large": (1 << 64) - 1, "float": 0.1, "none": None, "text": "日本語 👩\u200d🔬 \0"}
    for _ in range(100):
        nested = {"a": [nested]}
    assert through_the_wire(make_record(metadata=nested)).metadata == nested


def test_a_large_record_takes_several_frames() -> None:
    """A payload over 1 MiB is cut into frames that are each within the limit, and comes back whole."""
    record = make_large_record(3)
    frames = make_frames(record, RUN)
    assert len(frames) == 3
    assert max(map(len, frames)) <= MAX_FRAME_BYTES
    assert min(map(len, frames[:-1])) > CHUNK_BYTES
    assert same(through_the_wire(record), record)


def test_frames_carry_run_prompt_attempt_and_place() -> None:
    """Each frame says what it is a part of."""
    frames = [decode_frame(data, RUN, PROMPTS) for data in make_frames(make_large_record(3), RUN, b"attempt1")]
    assert {(f.version, f.run, f.index, f.attempt, f.chunks) for f in frames} == {(VERSION, RUN, 3, b"attempt1", 3)}
    assert [f.chunk for f in frames] == [0, 1, 2]


def test_a_payload_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 256 frames are refused with what the user can do."""
    monkeypatch.setattr(frame_module, "CHUNK_BYTES", 100)
    with pytest.raises(FrameError, match="over the limit of 25600; choose fewer positions"):
        split(bytes(100 * MAX_CHUNKS + 1), RUN, 0, b"8 bytes.")
    assert len(split(bytes(100 * MAX_CHUNKS), RUN, 0, b"8 bytes.")) == MAX_CHUNKS


def test_what_would_be_refused_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender holds to the limits of the receiver, so that a prompt fails at once and not after eight refusals."""
    monkeypatch.setattr(payload_module, "MAX_HEAD_BYTES", 1000)
    monkeypatch.setattr(payload_module, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(FrameError, match=r"text, tokens and metadata of .* over the limit"):
        encode_payload(make_record(text="x" * 1000))
    with pytest.raises(FrameError, match=r"text, tokens and metadata of .* over the limit"):
        encode_payload(make_failure(metadata={"x": "x" * 1000}))
    with pytest.raises(FrameError, match=r"arrays of .* over the limit"):
        encode_payload(make_record(tokens=40))


# ---- frames


def test_a_valid_frame_is_accepted() -> None:
    """The frame that the tests below make wrong is right as it is."""
    assert decode_frame(make_frame(RUN), RUN, PROMPTS).body == b"body"


def test_a_bad_checksum_is_refused() -> None:
    """One flipped bit of the body is found."""
    data = bytearray(make_frames(make_record(), RUN)[0])
    data[len(data) // 2] ^= 1
    refused(bytes(data), "checksum does not match")
    refused(make_frame(RUN, crc32=0), "checksum does not match")


def test_every_cut_is_refused() -> None:
    """No beginning of a frame passes for a frame."""
    data = make_frames(make_record(), RUN)[0]
    for length in [*range(0, 120), *range(120, len(data), 37), len(data) - 1]:
        refused(data[:length], "not a valid frame")


def test_trailing_bytes_are_refused() -> None:
    """A frame ends where it ends."""
    refused(make_frame(RUN) + b"\0", "not a valid frame")


@pytest.mark.parametrize("version", [0, VERSION + 1, -1, 1 << 63])
def test_another_version_is_refused(version: int) -> None:
    """Only the known version is read."""
    refused(make_frame(RUN, version=version), rf"frame version {version}, expected one of \[1, 2\]")


def test_a_frame_of_another_run_is_refused() -> None:
    """A frame belongs to one run."""
    refused(make_frame("another run"), "frame of another run")


@pytest.mark.parametrize("index", [-1, PROMPTS, 1 << 40, (1 << 64) - 1, -(1 << 63)])
def test_an_index_outside_the_corpus_is_refused(index: int) -> None:
    """The prompt must be one of the run's."""
    refused(make_frame(RUN, index=index), f"prompt index {index} is outside the corpus")


@pytest.mark.parametrize("attempt", [b"", b"7 bytes", b"9 bytes..", b"x" * 1000])
def test_an_attempt_is_8_bytes(attempt: bytes) -> None:
    """An attempt id of another length is refused."""
    refused(make_frame(RUN, attempt=attempt), "attempt id is not 8 bytes")


@pytest.mark.parametrize(
    ("chunk", "chunks"), [(0, 0), (1, 1), (-1, 1), (0, -1), (5, 3), (0, MAX_CHUNKS + 1), (0, 10**9), (1 << 63, 1 << 63)]
)
def test_chunk_numbers_are_checked(chunk: int, chunks: int) -> None:
    """A chunk is one of at most 256."""
    refused(make_frame(RUN, chunk=chunk, chunks=chunks), f"chunk {chunk} of {chunks}")


@pytest.mark.parametrize("field", ["version", "run", "index", "attempt", "chunk", "chunks", "crc32", "body"])
@pytest.mark.parametrize("value", [None, "text", 1.5, True, [], {}, b"\xff"], ids=repr)
def test_every_field_has_its_type(field: str, value: Any) -> None:
    """A missing field, or one of another type, is refused; text does not pass for bytes."""
    if (field, value) in [("run", "text"), ("attempt", b"\xff"), ("body", b"\xff")]:
        value = 7
    refused(make_frame(RUN, **{field: value}), "not a valid frame")


def test_base64_is_not_bytes() -> None:
    """Text that would be base64 of the right bytes is refused."""
    refused(make_frame(RUN, attempt="OCBieXRlcy4="), "Expected `bytes`, got `str`")
    refused(make_frame(RUN, b"", body=""), "Expected `bytes`, got `str`")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack(7),
        pack([]),
        pack({1: 2}),
        pack({b"version": 1}),
        b"\x81\xa1a\xa1\xff",  # text that is not UTF-8
        b"\x81\x91\x01\x01",  # a list as a key
    ],
    ids=lambda data: data.hex() or "empty",
)
def test_other_msgpack_is_refused(data: bytes) -> None:
    """Only a map of the fields is a frame."""
    refused(data, "not a valid frame")


@pytest.mark.parametrize("code", [-1, 0, 5, 127])
@pytest.mark.parametrize("length", [0, 1, 4, 8, 100])
def test_extension_types_are_refused(code: int, length: int) -> None:
    """No extension type, timestamps included, is ever taken for a value."""
    data = make_frame(RUN, body=None, crc32=None)
    extension = b"\xc7" + bytes([length]) + code.to_bytes(1, "big", signed=True) + bytes(length)
    refused(bytes([data[0] + 1]) + data[1:] + pack("crc32") + extension, "not a valid frame")


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 500_000,
        b"\x81\xa1a" * 300_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\x81\xa4body\xdd\xff\xff\xff\xff",
        b"\xdc\x10\x01" + b"\xc0" * 5000,
        pack({str(number): None for number in range(17)}),
        b"\x81\xa4body" + b"\xdc\x10\x00" * 300_000,
        b"\x81\xa4body" + EMPTY_LISTS,
        b"\x81\xa4more" + EMPTY_LISTS,
    ],
    ids=[
        *("arrays", "maps", "array32", "map32", "bin32", "str32", "ext32", "inner", "4097 items", "17 fields", "wide and deep"),
        *("a million lists", "a million lists in a field of no frame"),
    ],
)
def test_msgpack_bombs_are_refused_cheaply(data: bytes) -> None:
    """Nesting without end, headers that promise four billion items and a million items of nothing cost next to no memory."""
    with bounded_memory(1 << 20):
        refused(data, "not a valid frame")


def test_a_frame_over_the_limit_is_refused_unread() -> None:
    """An entry larger than any frame is refused by its size alone."""
    data = make_frame(RUN, bytes(CHUNK_BYTES + 1000))
    with bounded_memory(1 << 20):
        refused(data, f"frame of {len(data)} bytes is over the limit of {MAX_FRAME_BYTES}")
    refused(make_frame(RUN, bytes(CHUNK_BYTES + 1)), "not a valid frame")


# ---- payloads: the head


def test_an_unchanged_payload_is_accepted() -> None:
    """Taking a payload apart and putting it together changes nothing by itself."""
    record = make_record()
    assert same(decode_payload(changed_payload(record, lambda value: None), 0, VOCABULARY_SIZE), record)


def test_the_head_is_of_the_frames_prompt() -> None:
    """A payload that says another prompt than its frames is refused."""
    with pytest.raises(FrameError, match="head is of prompt 3, frame of prompt 4"):
        decode_payload(encode_payload(make_record(3)), 4, VOCABULARY_SIZE)
    with pytest.raises(FrameError, match="head is of prompt 3, frame of prompt 4"):
        decode_payload(encode_payload(make_failure(3)), 4, VOCABULARY_SIZE)


def test_a_record_without_taps_is_refused() -> None:
    """A record says something of at least one tap."""
    refused_change(lambda value: value["taps"].clear(), "record without taps")


def test_a_failure_may_lack_taps() -> None:
    """A failure has none, and comes back."""
    assert decode_payload(encode_payload(make_failure()), 0, VOCABULARY_SIZE) == make_failure()


@pytest.mark.parametrize("kind", ["", "crashed", "crash\n", "\x1b]0;x\x07", "k" * 1_000_000])
def test_a_failure_of_no_documented_kind_is_refused(kind: str) -> None:
    """Kinds stand in the ledger and in every count: they are words of a list, and what is none is not repeated in the reason."""
    with pytest.raises(FrameError, match=r"head: .*error\[0\]") as caught:
        decode_payload(encode_payload(make_failure(kind=kind)), 0, VOCABULARY_SIZE)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_every_documented_kind_comes_back(kind: str) -> None:
    """None that is documented is refused."""
    assert f"`{kind}`" in Path("docs/FORMAT.md").read_text()
    assert through_the_wire(make_failure(kind=kind)).kind == kind  # type: ignore[union-attr]


def test_an_id_is_no_longer_than_a_corpus_allows() -> None:
    """The longest id of a corpus with the number of its last sample comes back; one more character is refused."""
    longest = "日" * ID_LIMIT + f"#{MAX_SAMPLES}"
    for make in (make_record, make_failure):
        assert through_the_wire(make(id=longest)).id == longest
        with pytest.raises(FrameError, match=f"length <= {MAX_ID}"):
            decode_payload(encode_payload(make(id=longest + "0")), 0, VOCABULARY_SIZE)


def test_a_message_is_cut_where_it_is_sent() -> None:
    """Whatever a failure has to say, its prompt ends as one; a message that no sender cut is refused."""
    whole = make_failure(message="a" * MAX_MESSAGE + "b")
    assert through_the_wire(whole) == make_failure(message="a" * MAX_MESSAGE)
    longer = changed_payload(whole, lambda value: value["head"]["error"].append(value["head"]["error"].pop() + "b"))
    refused_payload(longer, f"length <= {MAX_MESSAGE}")


def test_an_unknown_tap_is_refused() -> None:
    """Tap names are those of the vocabulary of taps."""
    refused_change(lambda value: value["taps"].update({"x" * 500: value["taps"]["attn_out"]}), "unknown tap 'x{80}'")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"id": 1, "index": 0, "metadata": {}}',
        b'{"id": "p", "index": "0", "metadata": {}}',
        b'{"id": "p", "index": 0, "metadata": []}',
        b'{"id": "p", "index": 0}',
        b'{"id": "\xff", "index": 0, "metadata": {}}',
        b'{"id": "\\ud800", "index": 0, "metadata": {}}',
        b'{"id": "p", "index": 0, "metadata": {"a": NaN}}',
        b'{"id": "p", "index": 0, "metadata": {"a": 1e999}}',
        b'{"id": "p", "index": 0, "metadata": {"a": ' + b"9" * 5000 + b"}}",
        b'{"id": "p", "index": 0, "metadata": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id": "p", "index": 0, "metadata": {}, "error": ["crash"]}',
        b'{"id": "p", "index": 0, "metadata": {}, "tokens": [1]}',
        b'{"id": "p", "index": 0, "metadata": {}, "token_ids": [1.5]}',
    ],
    ids=lambda head: head[:50].decode("utf-8", "replace") or "empty",
)
def test_a_head_that_is_no_head_is_refused(head: bytes) -> None:
    """The head is JSON of the known fields, with their types and of limited depth."""
    refused_change(lambda value: value.update(head=Raw(compress(head))), "head: ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_ids": []}, "0 token ids and 4 tokens"),
        ({"token_ids": [], "tokens": [], "positions": []}, "0 token ids and 0 tokens"),
        ({"tokens": ["a"]}, "4 token ids and 1 tokens"),
        ({"token_ids": [0, 1, 2, VOCABULARY_SIZE]}, "token id of the prompt is outside the vocabulary"),
        ({"token_ids": [0, 1, 2, -1]}, "token id of the prompt is outside the vocabulary"),
        ({"token_ids": [0, 1, 2, 1 << 80]}, "token id of the prompt is outside the vocabulary"),
        ({"positions": []}, "positions are not ascending"),
        ({"positions": [0, 1, 2, 4]}, "positions are not ascending"),
        ({"positions": [-1, 1, 2, 3]}, "positions are not ascending"),
        ({"positions": [0, 1, 1, 3]}, "positions are not ascending"),
        ({"positions": [3, 2, 1, 0]}, "positions are not ascending"),
        ({"positions": [0, 1 << 80, 2, 3]}, "positions are not ascending"),
        ({"layers": []}, "layers are not ascending"),
        ({"layers": [3, 0]}, "layers are not ascending"),
        ({"layers": [-1]}, "layers are not ascending"),
        ({"layers": [1 << 70]}, "layers are not ascending"),
        ({"truncated_from": 4}, "truncated from 4 tokens to 4"),
        ({"truncated_from": -1}, "truncated from -1"),
        ({"truncated_from": 1 << 32}, "truncated from"),
        ({"truncated_from": 1 << 80}, "truncated from"),
    ],
    ids=str,
)
def test_a_head_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    """Tokens, positions and layers must fit each other and the vocabulary."""
    refused_change(lambda value: value["head"].update(changes), reason)


# ---- payloads: the arrays


def tap_change(**changes: Any) -> Change:
    """A change of fields of one tap."""
    return lambda value: value["taps"]["resid_post"].update(changes)


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 3), (3, 4, 3), (2, 3, 3), (2, 5, 3), (-2, -4, 3), (2, 4, -3), (2, 4, 0), (2, 4, VOCABULARY_SIZE + 1)],
    ids=str,
)
def test_a_shape_must_fit_layers_and_positions(shape: tuple[int, int, int]) -> None:
    """The declared shape is that of the head and of the tap's layers, and k is at most the vocabulary."""
    refused_change(tap_change(shape=shape), "does not fit 2 layers and 4 positions")


@pytest.mark.parametrize("shape", [[2, 4], [2, 4, 3, 1], [2, 4, "3"], [2, 4, None], "243", [2.0, 4, 3]], ids=repr)
def test_a_shape_is_three_integers(shape: Any) -> None:
    """Anything but three integers is no shape."""
    refused_change(tap_change(shape=shape), "not a valid payload")


@pytest.mark.parametrize("layers", [[3, 0], [0, 0], [-1, 3], [0, 1 << 40]], ids=str)
def test_the_layers_of_a_tap_ascend(layers: list[int]) -> None:
    """A tap's layers are ascending layer numbers."""
    refused_change(tap_change(layers=layers), "layers of a tap are not ascending")


@pytest.mark.parametrize("dtype", ["float64", "object", "", None, 2])
def test_the_type_of_logprobs_is_one_of_two(dtype: Any) -> None:
    """Logprobs are float16 or float32."""
    refused_change(tap_change(dtype=dtype), "not a valid payload")


def test_taps_agree_on_the_type_of_logprobs() -> None:
    """A record has one type of logprobs, for the stored record names it once."""
    lens = make_record(dtype="float32").taps["resid_post"]
    record = make_record()
    mixed = replace(record, taps={**record.taps, "resid_post": lens})
    refused_payload(encode_payload(mixed), "differ in the type")


def test_a_huge_declared_shape_is_refused_cheaply() -> None:
    """A shape within its head but over the limit of bytes is refused before anything is inflated."""
    many = 400_000

    def change(value: dict[str, Any]) -> None:
        value["head"].update(token_ids=[0] * many, tokens=[""] * many, positions=list(range(many)))
        value["taps"]["resid_post"].update(shape=(2, many, 300), ids=Raw(compress(bytes(1 << 20))))
        del value["taps"]["attn_out"]

    payload = changed_payload(make_record(), change)
    with bounded_memory(64 << 20):  # of the head's own lists
        refused_payload(payload, f"arrays of .* over the limit of {MAX_ARRAY_BYTES}")


def test_many_taps_share_one_limit() -> None:
    """Arrays that are each within the limit are refused together, before any of them is inflated."""
    many = 40_000

    def change(value: dict[str, Any]) -> None:
        value["head"].update(token_ids=[0] * many, tokens=[""] * many, positions=list(range(many)))
        tap = {**value["taps"]["resid_post"], "shape": (2, many, 300), "ids": Raw(compress(bytes(2 * many * 300 * 4)))}
        assert 2 * many * 300 * 6 < MAX_ARRAY_BYTES
        value["taps"] = dict.fromkeys(["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"], tap)

    payload = changed_payload(make_record(), change)
    with bounded_memory(16 << 20):
        refused_payload(payload, f"arrays of .* over the limit of {MAX_ARRAY_BYTES}")


def test_a_negative_shape_does_not_make_room() -> None:
    """One tap's negative shape cannot pay for another's that is over the limit."""
    many = 400_000

    def change(value: dict[str, Any]) -> None:
        value["head"].update(token_ids=[0] * many, tokens=[""] * many, positions=list(range(many)))
        value["taps"]["attn_out"].update(shape=(2, many, 300), ids=Raw(compress(bytes(1 << 20))))
        value["taps"]["resid_post"].update(shape=(-2, many, 300))

    payload = changed_payload(make_record(), change)
    with bounded_memory(64 << 20):
        refused_payload(payload, "does not fit")


ARRAYS = ("ids", "logprobs", "logsumexp", "entropy")


@pytest.mark.parametrize("name", ARRAYS)
def test_a_bomb_that_tells_its_size_is_refused_cheaply(name: str) -> None:
    """A few kilobytes that would inflate to 64 MiB are refused by their declared size."""
    refusal = "compressed part declares 67108864 bytes, its shape needs"
    payload = changed_payload(make_record(), tap_change(**{name: Raw(compress(bytes(64 << 20)))}))
    assert len(payload) < 16 << 10
    with bounded_memory(1 << 20):
        refused_payload(payload, refusal)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("real", [1, 4096, 64 << 20])
def test_a_bomb_that_lies_about_its_size_is_refused_cheaply(name: str, real: int) -> None:
    """Content that is shorter or longer than its header says is refused, and costs what the header says."""
    size = len(open_payload(encode_payload(make_record()))["taps"]["resid_post"][name])
    payload = changed_payload(make_record(), tap_change(**{name: Raw(declare(compress(bytes(real)), size))}))
    with bounded_memory(1 << 20):
        refused_payload(payload, "compressed part: ")


def test_a_head_over_the_limit_is_refused_cheaply() -> None:
    """A head that declares more than the limit is never inflated."""
    bomb = Raw(declare(compress(b"{}"), MAX_HEAD_BYTES + 1))
    payload = changed_payload(make_record(), lambda value: value.update(head=bomb))
    with bounded_memory(1 << 20):
        refused_payload(payload, f"declares {MAX_HEAD_BYTES + 1} bytes, limit {MAX_HEAD_BYTES}")


def test_a_head_that_lies_is_refused_at_the_price_it_named() -> None:
    """A head of 64 MiB of zeros that declares two bytes is refused for two bytes."""
    payload = changed_payload(make_record(), lambda value: value.update(head=Raw(declare(compress(bytes(64 << 20)), 2))))
    with bounded_memory(1 << 20):
        refused_payload(payload, "compressed part: ")


def test_a_missing_content_size_is_refused() -> None:
    """Compressed parts must say their size."""
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    refused_change(lambda value: value.update(head=Raw(unsized.compress(b"{}"))), "compressed part declares")
    for name in ARRAYS:
        refused_change(tap_change(**{name: Raw(unsized.compress(bytes(48)))}), "compressed part declares")


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        b"plain bytes, no zstd",
        compress(bytes(96))[:-1],
        compress(bytes(96)) + b"\0",
        compress(bytes(96)) * 2,
        b"\x50\x2a\x4d\x18" + (96).to_bytes(4, "little") + bytes(96),  # a frame to be skipped, of the right size
        zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(b"words of a dictionary " * 20)).compress(bytes(96))[
            :-2
        ],
    ],
    ids=["empty", "magic", "plain", "cut", "trailing", "twice", "skippable", "dictionary"],
)
def test_a_part_that_is_not_one_zstd_frame_is_refused(part: bytes) -> None:
    """Each array is exactly one whole zstd frame."""
    refused_change(tap_change(ids=Raw(part)), "compressed part")


def with_logprobs(place: int, value: float, dtype: str) -> bytes:
    """The payload of a record with one logprob changed."""
    record = make_record(dtype=dtype)
    record.taps["resid_post"].logprobs[1, 2, place] = value
    return encode_payload(record)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("place", "value"), [(1, np.nan), (0, np.inf), (2, -np.inf), (0, 1e-4), (0, 1.0), (0, -60000.0), (2, 0.0)], ids=str
)
def test_logprobs_are_sorted_finite_and_not_positive(dtype: str, place: int, value: float) -> None:
    """NaN, infinities, positive and unsorted logprobs are refused."""
    refused_payload(with_logprobs(place, value, dtype), "logprobs are not sorted finite numbers at or below 0")


def test_equal_logprobs_are_sorted() -> None:
    """Neighbours may be equal, and certainty is a logprob of 0."""
    record = make_record()
    record.taps["resid_post"].logprobs[:] = 0
    assert same(through_the_wire(record), record)


@pytest.mark.parametrize("name", ["logsumexp", "entropy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_metrics_are_finite(name: str, value: float) -> None:
    """A logsumexp or entropy that is no finite number is refused."""
    record = make_record()
    getattr(record.taps["resid_post"], name)[1, 2] = value
    refused_payload(encode_payload(record), "logsumexp or entropy is not finite")


@pytest.mark.parametrize("token", [VOCABULARY_SIZE, VOCABULARY_SIZE + 1, (1 << 32) - 1])
def test_an_id_past_the_vocabulary_is_refused(token: int) -> None:
    """Every id has a logit."""
    record = make_record()
    record.taps["attn_out"].ids[0, 1, 2] = token
    refused_payload(encode_payload(record), f"token id {token} is outside the vocabulary of {VOCABULARY_SIZE}")


def test_the_layout_of_the_arrays_is_the_documented_one() -> None:
    """Ids are little-endian uint32 with like bytes together, as any other reader would take them apart."""
    record = make_record()
    parts = open_payload(encode_payload(record))["taps"]["resid_post"]
    tap = record.taps["resid_post"]
    assert parts["ids"] == shuffle(tap.ids.astype("<u4"))
    assert parts["logprobs"] == shuffle(tap.logprobs.astype("<f2"))
    assert parts["entropy"] == shuffle(tap.entropy.astype("<f4"))
    assert parts["shape"] == [2, 4, 3]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        pack([]),
        pack({}),
        pack({"head": b""}),
        pack({"head": "", "taps": {}}),
        pack({"head": b"", "taps": {"x": {}}}),
    ],
    ids=lambda payload: payload.hex() or "empty",
)
def test_a_payload_that_is_none_is_refused(payload: bytes) -> None:
    """Only a map of head and taps is a payload."""
    refused_payload(payload, "not a valid payload")


def test_payload_bombs_are_refused_cheaply() -> None:
    """Nesting and huge headers inside a payload cost next to no memory."""
    for data in (
        b"\x91" * 500_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x82\xa4head\xc6\xff\xff\xff\xff",
        msgpack.packb({"taps": [[]] * 5000}),
        b"\x81\xa4head" + EMPTY_LISTS,
        b"\x82\xa4head\xc4\x00\xa4taps\x81\xa1x\x81\xa6layers" + EMPTY_LISTS,
    ):
        with bounded_memory(1 << 20):
            refused_payload(data, "not a valid payload")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Bytes from nowhere are neither frame nor payload."""
    refused(data, "not a valid frame")
    refused_payload(data, "not a valid payload")


def stat(name: str = "next_rank", **changes: Any) -> Change:
    """A change of one statistic of the first tap."""

    def change(value: dict[str, Any]) -> None:
        value["taps"]["attn_out"]["stats"][name].update(changes)

    return change


def every_tap(change: Change) -> Change:
    """A change of the statistics of all taps."""
    return lambda value: [change(tap["stats"]) for tap in value["taps"].values()]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (stat(shape=[2, 3]), "shape .* of next_rank does not fit"),
        (
            every_tap(lambda stats: stats["next_rank"].update(shape=[2, 4, 3])),
            "shape .* of next_rank does not fit its tap and 2 tracked",
        ),
        (stat(shape=[1 << 40, 1 << 40]), "shape .* of next_rank does not fit"),
        (stat(dtype="float64"), "not a valid payload"),
        (stat(data=bytes(4)), "declares 4 bytes, its shape needs 32"),
        (stat(dtype="float32"), "taps differ in the type or axes of a statistic"),
        (stat(shape=[2, 4, 2]), "taps differ in the type or axes of a statistic"),
        (stat("next_logprob", data=shuffle(np.full((2, 4), np.inf, np.float32))), "a statistic is infinite"),
        (lambda value: value["head"].update(tracked=[0, VOCABULARY_SIZE]), "outside the vocabulary"),
        (lambda value: value["head"].update(tracked=[0, -1]), "outside the vocabulary"),
        (lambda value: value["head"].update(tracked=[0] * 5000), "5000 tracked tokens, limit 4096"),
        (
            every_tap(lambda stats: stats.update({"a/b": {"shape": [2, 4], "dtype": "uint32", "data": b""}})),
            "name of a statistic: 'a/b'",
        ),
        (
            every_tap(lambda stats: stats.update({"n" * 65: {"shape": [2, 4], "dtype": "uint32", "data": b""}})),
            "name of a statistic: 'n{65}'",
        ),
        (
            every_tap(lambda stats: stats.update({"größe": {"shape": [2, 4], "dtype": "uint32", "data": b""}})),
            "name of a statistic: 'größe'",
        ),
        (
            every_tap(lambda stats: stats.update({f"s{n}": stats["next_rank"] for n in range(15)})),
            "Expected `object` of length <= 16 - at",
        ),
    ],
)
def test_statistics_are_checked(change: Change, reason: str) -> None:
    """Names, shapes, types, sizes and values of statistics, and the tracked ids."""
    refused_payload(changed_payload(make_record(tracked=2, stats=True), change), reason)


def test_what_reaches_a_limit_is_taken() -> None:
    """The whole vocabulary at every place, as many tracked tokens as there may be, and the longest name of a statistic."""
    whole = make_record(k=6, vocabulary_size=6)
    assert same(decode_payload(encode_payload(whole), 0, 6), whole)
    tracked = make_record(tracked=MAX_TRACKED, stats=True, tokens=1, layers=(0,))
    assert same(through_the_wire(tracked), tracked)
    named = make_record()
    named.taps["resid_post"].stats["n" * 64] = np.zeros((2, 4), np.uint32)
    assert same(through_the_wire(named), named)
    cut = make_record(truncated_from=(1 << 32) - 1)
    assert same(through_the_wire(cut), cut)


def test_the_numbers_of_each_place_count_among_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id and a logprob for each of the k best, a logsumexp and an entropy: not a byte more or less."""
    record = make_record(tokens=5, layers=(0, 1), taps=("resid_post",), k=3, dtype="float16")
    size = 2 * 5 * (3 * (4 + 2) + 4 + 4)
    monkeypatch.setattr(payload_module, "MAX_ARRAY_BYTES", size)
    assert same(through_the_wire(record), record)
    monkeypatch.setattr(payload_module, "MAX_ARRAY_BYTES", size - 1)
    with pytest.raises(FrameError, match=f"arrays of {size} bytes are over the limit of {size - 1}"):
        encode_payload(record)


def test_every_nan_of_a_statistic_is_the_same() -> None:
    """Whatever bits an actor's NaN has: equal records are equal bytes."""
    record = make_record(0, tracked=1, stats=True)
    (tap, *_) = record.taps.values()
    name = next(name for name, values in tap.stats.items() if values.dtype == np.float32)
    tap.stats[name].view(np.uint32)[...] = 0xFFC12345
    again = decode_payload(encode_payload(record), 0, VOCABULARY_SIZE)
    assert isinstance(again, Record)
    (tap, *_) = again.taps.values()
    assert set(tap.stats[name].view(np.uint32).ravel().tolist()) == {0x7FC00000}


@pytest.mark.parametrize("settings", [{}, {"stats": True, "tracked": 2}, {"taps": TAPS, "dtype": "float32"}], ids=str)
def test_what_a_payload_inflates_to_is_known_before(settings: dict[str, Any]) -> None:
    """The size is that of the head and of each array as they are decompressed; what cannot be told counts nothing."""
    payload = encode_payload(make_record(tokens=7, **settings))
    value = open_payload(payload)
    arrays = [tap[name] for tap in value["taps"].values() for name in ("ids", "logprobs", "logsumexp", "entropy")]
    arrays += [stat["data"] for tap in value["taps"].values() for stat in tap["stats"].values()]
    head = zstandard.decompress(msgpack.unpackb(payload)["head"])
    assert inflated_size(payload) == len(head) + sum(map(len, arrays))
    assert inflated_size(payload[:-1]) == 0
    value["head"] = Raw(b"no zstd")
    assert inflated_size(close_payload(value)) == 0


def test_what_will_be_refused_counts_no_more_than_the_limits() -> None:
    """Whatever sizes a payload declares, nothing beyond the limits is inflated of it."""
    value = open_payload(encode_payload(make_record()))
    value["head"] = Raw(declare(compress(b"{}"), 1 << 62))
    value["taps"]["attn_out"]["shape"] = [1 << 40, 1 << 40, 1]
    assert inflated_size(close_payload(value)) == MAX_HEAD_BYTES + MAX_ARRAY_BYTES
    value["taps"]["attn_out"]["shape"] = [-(1 << 40), 1 << 20, 1]
    assert inflated_size(close_payload(value)) == MAX_HEAD_BYTES


def test_statistics_count_among_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracked tokens make most of a record large that is small without."""
    monkeypatch.setattr(payload_module, "MAX_ARRAY_BYTES", 1000)
    small: dict[str, Any] = {"layers": (0,), "taps": ("resid_post",), "k": 1, "stats": True}
    encode_payload(make_record(0, **small))
    with pytest.raises(FrameError, match="over the limit of 1000"):
        encode_payload(make_record(0, tracked=100, **small))


def test_as_many_taps_as_a_model_may_have() -> None:
    """The residual's and one for each head; a head beyond the limit is none."""
    taps = (*TAPS, *map(head_tap, range(MAX_HEADS)))
    record = make_record(taps=taps, tokens=1, layers=(0,), k=1)
    assert same(decode_payload(encode_payload(record), 0, VOCABULARY_SIZE), record)
    refused_payload(encode_payload(make_record(taps=(head_tap(MAX_HEADS),))), f"unknown tap 'head_{MAX_HEADS}'")


def test_frames_of_the_version_before_are_read() -> None:
    """What was sent before there were statistics is a record without them."""
    record = make_record()

    def before(value: dict[str, Any]) -> None:
        for tap in value["taps"].values():
            del tap["stats"]

    assert same(decode_payload(changed_payload(record, before), 0, VOCABULARY_SIZE), record)
    assert decode_frame(make_frame(RUN, version=1), RUN, 10).version == 1
