"""What makes two corpora the same: their prompts in order, whatever files they came from."""

import hashlib

import msgspec

from raylens.storage.record import Prompt

#: A mark is set after so many prompts, or so many bytes of them; bytes of a mark.
MARK_PROMPTS, MARK_BYTES, MARK_SIZE = 1024, 16 << 20, 8

# MessagePack has one form for each value used here (floats as their 8 bytes), so the digest does not depend on how a
# version of some library prints a number.
_ENCODER = msgspec.msgpack.Encoder(order="sorted")


class Fingerprint:
    """A running SHA-256 over prompts: id, text, messages, token ids and metadata, in order.

    Independent of file names, formats, compression, and the order of keys in metadata.

    Attributes:
        marks: the beginnings of the digests after each ``MARK_PROMPTS`` prompts, or fewer that are large, one after the other.
    """

    __slots__ = ("_bytes", "_hash", "_prompts", "marks")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._prompts = self._bytes = 0  # since the last mark
        self.marks = bytearray()

    def update(self, prompt: Prompt) -> int:
        """Take the next prompt in; returns its size in bytes."""
        encoded = _ENCODER.encode((prompt.id, prompt.text, prompt.messages, prompt.token_ids, prompt.metadata))
        self._hash.update(encoded)
        self._prompts += 1
        self._bytes += len(encoded)
        if self._prompts == MARK_PROMPTS or self._bytes >= MARK_BYTES:
            self.marks += self._hash.digest()[:MARK_SIZE]
            self._prompts = self._bytes = 0
        return len(encoded)

    def hexdigest(self) -> str:
        """The fingerprint of the prompts so far, 64 hexadecimal digits."""
        return self._hash.hexdigest()
