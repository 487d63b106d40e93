"""A run's vocabulary: token id -> bytes, stored once a run."""

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import msgpack
import msgspec
import numpy as np
import zstandard
from numpy.typing import ArrayLike

from raylens.storage.durable import read_file, write_file
from raylens.storage.errors import StoreError, UsageError

#: Bytes of a vocabulary file decompressed, its tokens, and bytes of one of them.
MAX_BYTES = 256 << 20
MAX_TOKENS = 1 << 24
MAX_TOKEN_BYTES = 1 << 16

#: Token id -> its bytes; None where the tokenizer has no such token.
Vocabulary = Sequence[bytes | None]

_Token = Annotated[bytes, msgspec.Meta(max_length=MAX_TOKEN_BYTES)]
# what is of another type is refused before anything is made of it
_DECODER = msgspec.msgpack.Decoder(Annotated[list[_Token | None], msgspec.Meta(max_length=MAX_TOKENS)])


class StoredVocabulary(Sequence[bytes | None]):
    """A run's vocabulary, read from its file when it is first asked for a token.

    Raises:
        StoreError: on first use; the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def tokens(self) -> Vocabulary:
        """The whole of it."""
        return read_vocabulary(self._path)

    def __getitem__(self, token: Any) -> Any:
        return self.tokens[token]

    def __len__(self) -> int:
        return len(self.tokens)


def token_text(vocabulary: Vocabulary, token: int) -> str:
    """A token as text; bytes that are no whole character become U+FFFD, an id without a token ``‹id N›``."""
    known = vocabulary[token] if 0 <= token < len(vocabulary) else None
    return f"‹id {token}›" if known is None else known.decode(errors="replace")


def token_texts(vocabulary: Vocabulary, ids: ArrayLike) -> Any:
    """Token ids as ``token_text`` has them: an array of strings of the same shape, or the string of a single id.

    Raises:
        UsageError: the ids are no integers.
    """
    given = np.asarray(ids)
    if given.size and given.dtype.kind not in "iu":
        raise UsageError(f"token ids are integers, not {given.dtype}; give those of a TapLens, for example")
    different, which = np.unique(given.astype(np.int64), return_inverse=True)
    # not numpy's strings, which lose characters of number 0 at the end
    texts = np.array([token_text(vocabulary, int(token)) for token in different], dtype=object)
    return texts[which.ravel()].reshape(given.shape)[()]


def unstorable(vocabulary: Vocabulary) -> str | None:
    """What of a vocabulary a reader would refuse, in words; None if nothing."""
    longest = max(vocabulary, key=lambda token: len(token or b""), default=None) or b""
    if len(longest) > MAX_TOKEN_BYTES:
        return f"the token {longest[:40]!r}... of {len(longest):,} bytes, limit {MAX_TOKEN_BYTES:,}"
    size = sum(len(token or b"") + 5 for token in vocabulary)  # with what msgpack writes before each
    return f"tokens of {size:,} bytes, limit {MAX_BYTES:,}" if size + 5 > MAX_BYTES else None


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Store a vocabulary durably."""
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
    write_file(path, compress(msgpack.packb(list(vocabulary), use_bin_type=True)))


def read_vocabulary(path: Path) -> Vocabulary:
    """The stored vocabulary.

    Raises:
        StoreError: the file is missing or damaged.
    """
    data = _file(path)
    try:
        if not 0 < zstandard.get_frame_parameters(data).content_size <= MAX_BYTES:
            raise StoreError(f"{path}: vocabulary is over the limit of {MAX_BYTES} bytes")
        tokens: Vocabulary = _DECODER.decode(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
        return tokens
    except (msgspec.DecodeError, zstandard.ZstdError) as error:
        raise StoreError(f"{path}: damaged vocabulary ({error})") from error


def vocabulary_digest(path: Path) -> bytes:
    """What tells a vocabulary from others without a look at its tokens; two of one digest are the same.

    Raises:
        StoreError: the file is missing.
    """
    return blake2b(_file(path)).digest()


def _file(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; the run lacks its vocabulary") from error
