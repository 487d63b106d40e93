"""What makes two corpora the same: their prompts in order, whatever files they came from."""

import hashlib

import msgspec

from raylens.storage.record import Prompt

# MessagePack has one form for each value used here (floats as their 8 bytes), so the digest does not depend on how a
# version of some library prints a number.
_ENCODER = msgspec.msgpack.Encoder(order="sorted")


class Fingerprint:
    """A running SHA-256 over prompts: id, text, messages, token ids and metadata, in order.

    Independent of file names, formats, compression, and the order of keys in metadata.
    """

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, prompt: Prompt) -> int:
        """Take the next prompt in; returns its size in bytes."""
        encoded = _ENCODER.encode((prompt.id, prompt.text, prompt.messages, prompt.token_ids, prompt.metadata))
        self._hash.update(encoded)
        return len(encoded)

    def hexdigest(self) -> str:
        """The fingerprint of the prompts so far, 64 hexadecimal digits."""
        return self._hash.hexdigest()
