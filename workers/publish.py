"""Sending outcomes into the stream, and the messages between driver and actor."""

import secrets

import msgspec

from raylens.storage.errors import FrameError
from raylens.storage.frame import split
from raylens.storage.payload import encode_payload
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.stream import Stream


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """What was published for one prompt: the entries' ids in the stream and their bytes. A claim, not yet the truth."""

    index: int
    entries: list[str]
    size: int


_PROMPTS = msgspec.msgpack.Decoder(list[Prompt])
_RECEIPTS = msgspec.msgpack.Decoder(list[Receipt])


def encode_prompts(prompts: list[Prompt]) -> bytes:
    """Prompts as one message to an actor."""
    return msgspec.msgpack.encode(prompts)


def decode_prompts(data: bytes) -> list[Prompt]:
    """The prompts of a message."""
    return _PROMPTS.decode(data)


def encode_receipts(receipts: list[Receipt]) -> bytes:
    """An actor's answer as one message."""
    return msgspec.msgpack.encode(receipts)


def decode_receipts(data: bytes) -> list[Receipt]:
    """An actor's answer."""
    return _RECEIPTS.decode(data)


def publish(stream: Stream, run: str, outcome: Record | Failure) -> Receipt:
    """Send one outcome as one attempt.

    Raises:
        BrokerError: the server is away for longer than the client waits.
    """
    try:
        frames = split(encode_payload(outcome), run, outcome.index, secrets.token_bytes(8))
    except FrameError as error:
        return publish(stream, run, Failure(outcome.id, outcome.index, "too_large", str(error), outcome.metadata))
    return Receipt(outcome.index, [stream.publish(frame) for frame in frames], sum(map(len, frames)))
