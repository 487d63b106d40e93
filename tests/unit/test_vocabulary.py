"""The stored vocabulary: bytes by token id, and one clear error when it cannot be read."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.errors import StoreError, UsageError
from raylens.storage.vocabulary import (
    MAX_BYTES,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    read_vocabulary,
    token_text,
    token_texts,
    unstorable,
    write_vocabulary,
)
from tests.builders import make_vocabulary
from tests.memory import bounded_memory


def pack(value: Any) -> bytes:
    return zstandard.compress(msgpack.packb(value, use_bin_type=True), 3)


@given(st.lists(st.none() | st.binary(max_size=20), max_size=50))
def test_every_vocabulary_reads_back(tmp_path_factory: pytest.TempPathFactory, tokens: list[bytes | None]) -> None:
    """Bytes of any kind, empty tokens and ids without a token come back as they were."""
    path = tmp_path_factory.getbasetemp() / "vocabulary"
    write_vocabulary(path, tokens)
    assert read_vocabulary(path) == tokens


def test_the_text_of_a_token() -> None:
    """Ids from the vocabulary's size on, and those that have no token, are named by their number."""
    tokens = [b"a", None]
    assert [token_text(tokens, token) for token in range(4)] == ["a", "‹id 1›", "‹id 2›", "‹id 3›"]


@given(st.lists(st.integers(-2, 6), max_size=12))
def test_the_texts_of_tokens(ids: list[int]) -> None:
    """Each as by itself, in an array of the same shape, whatever the integers' type; characters of number 0 are kept."""
    tokens = [b"a", None, b"b\x00", b"\xe9", b""]
    each = [token_text(tokens, token) for token in ids]
    assert token_texts(tokens, ids).tolist() == each
    assert token_texts(tokens, np.array([ids, ids], np.int8)).tolist() == [each, each]
    assert token_texts(tokens, np.uint32(2)) == token_texts(tokens, 2) == "b\x00"


@pytest.mark.parametrize("ids", [0.5, [1.0], "a", [[True]], None])
def test_what_is_no_id_of_a_token_is_refused(ids: Any) -> None:
    """Rather than being rounded or counted as one."""
    with pytest.raises(UsageError, match="token ids are integers, not"):
        token_texts([b"a"], ids)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    """A run without its vocabulary says so, with the file."""
    with pytest.raises(StoreError, match=r"vocabulary\.zst: No such file.*lacks its vocabulary"):
        read_vocabulary(tmp_path / "vocabulary.zst")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_vocabulary_cut_short_is_damaged(tmp_path: Path, part: float) -> None:
    """No beginning of the file passes for a vocabulary."""
    path = tmp_path / "vocabulary.zst"
    write_vocabulary(path, make_vocabulary())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(StoreError, match=r"vocabulary\.zst: damaged"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    "data",
    [
        b"not zstd at all",
        zstandard.compress(b""),
        zstandard.compress(b"\xc1"),
        zstandard.compress(b"\xdd\xff\xff\xff\xff"),
        zstandard.compress(b"\x91" * 100_000),
        zstandard.compress(b"\x90\x90"),
        zstandard.compress(b"\xdd" + (1 << 22).to_bytes(4, "big") + b"\x90" * (1 << 22)),
        zstandard.compress(b"\xdd" + (MAX_TOKENS + 1).to_bytes(4, "big") + b"\xc0" * (MAX_TOKENS + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"\x90"),
        b"\x28\xb5\x2f\xfd\xe0" + (MAX_BYTES + 1).to_bytes(8, "little") + b"\x01\x00\x00",
        pack({}),
        pack(7),
        pack(["text"]),
        pack([1]),
        pack([[]]),
        pack([b"x" * (MAX_TOKEN_BYTES + 1)]),
        pack([msgpack.ExtType(5, b"x")]),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, data: bytes) -> None:
    """Whatever the file holds, the error is a StoreError that names it."""
    path = tmp_path / "vocabulary.zst"
    path.write_bytes(data)
    with (
        bounded_memory(33 << 20),
        pytest.raises(StoreError, match=r"vocabulary\.zst: "),
    ):  # the largest of them inflates to 16 MiB
        read_vocabulary(path)


@pytest.mark.parametrize("size", [MAX_TOKEN_BYTES, MAX_TOKEN_BYTES + 1])
def test_what_a_reader_refuses_is_known_before_it_is_written(tmp_path: Path, size: int) -> None:
    """To the byte."""
    tokens = [b"a", None, b"b" * size]
    write_vocabulary(tmp_path / "v", tokens)
    if unstorable(tokens) is None:
        assert read_vocabulary(tmp_path / "v") == tokens
    else:
        assert size > MAX_TOKEN_BYTES
        with pytest.raises(StoreError):
            read_vocabulary(tmp_path / "v")


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    """A small file that declares more than the limit costs next to no memory."""
    path = tmp_path / "vocabulary.zst"
    compressor = zstandard.ZstdCompressor().compressobj(size=2 * MAX_BYTES)
    zeros = bytes(1 << 20)
    path.write_bytes(b"".join(compressor.compress(zeros) for _ in range(2 * MAX_BYTES >> 20)) + compressor.flush())
    assert path.stat().st_size < 1 << 20
    with bounded_memory(2 << 20), pytest.raises(StoreError, match="over the limit"):
        read_vocabulary(path)
