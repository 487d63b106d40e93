"""Sending outcomes into the stream, and the messages between driver and actor."""

import secrets
from contextlib import suppress
from functools import partial

import msgspec

from raylens.storage.errors import FrameError, ServerFull, ServerRefuses
from raylens.storage.frame import check_size, split
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


def payload_of(outcome: Record | Failure) -> bytes:
    """What is sent for it; of a record that is too large, that it is."""
    try:
        payload = encode_payload(outcome)
        check_size(payload)
    except FrameError as error:
        return encode_payload(Failure(outcome.id, outcome.index, "too_large", str(error), outcome.metadata))
    return payload


def publish(stream: Stream, run: str, outcome: Record | Failure, *, patient: bool = False) -> Receipt:
    """Send one outcome as one attempt.

    Args:
        patient: wait for a server that is full or takes no writes, however long that is, so that nothing is computed twice. Only
            an actor may, whose driver ends it when the run ends.

    Raises:
        BrokerError: the server is away for longer than the client waits.
        ServerFull, ServerRefuses: it is full, or takes no writes, for as long, and this was not to be patient.
    """
    frames = split(payload_of(outcome), run, outcome.index, secrets.token_bytes(8))
    send = partial(_send_when_there_is_room, stream) if patient else stream.publish
    return Receipt(outcome.index, [send(frame) for frame in frames], sum(map(len, frames)))


def _send_when_there_is_room(stream: Stream, frame: bytes) -> str:
    while True:
        with suppress(ServerFull, ServerRefuses):  # raised only after the stream has waited
            return stream.publish(frame)
