"""The envelope on the stream: a payload is cut into frames of at most 1 MiB (docs/FORMAT.md, section Frame).

Decoding trusts nothing: sizes are tested before anything is allocated, types and values before anything is used. So msgspec reads
what msgpack wrote: it knows the type of each part and makes nothing of what is of another.
"""

import zlib
from typing import Annotated, TypeVar

import msgpack
import msgspec

from raylens.storage.errors import FrameError

#: Version of frame and payload that is written; those that are read differ only in what may be absent.
VERSION = 2
READABLE = frozenset({1, 2})
#: Bytes of payload in one frame.
CHUNK_BYTES = 1 << 20
#: Frames of one outcome, so a payload is at most 256 MiB.
MAX_CHUNKS = 256
#: Bytes of one whole frame: a chunk and its envelope.
MAX_FRAME_BYTES = CHUNK_BYTES + 512

T = TypeVar("T")


class Frame(msgspec.Struct, frozen=True):
    """One entry of the stream: chunk ``chunk`` of ``chunks`` of one attempt at one prompt."""

    version: int
    run: str
    index: int
    attempt: bytes
    chunk: int
    chunks: int
    crc32: int
    body: Annotated[bytes, msgspec.Meta(max_length=CHUNK_BYTES)]


_FRAME = msgspec.msgpack.Decoder(Frame)


def check_size(payload: bytes) -> None:
    """Refuse what frames cannot carry.

    Raises:
        FrameError: the payload is larger than ``MAX_CHUNKS`` frames.
    """
    if len(payload) > MAX_CHUNKS * CHUNK_BYTES:
        raise FrameError(
            f"record of {len(payload)} bytes is over the limit of {MAX_CHUNKS * CHUNK_BYTES}; choose fewer positions"
        )


def split(payload: bytes, run: str, index: int, attempt: bytes) -> list[bytes]:
    """Cut a payload into frames ready for the stream.

    Raises:
        FrameError: as ``check_size``.
    """
    check_size(payload)
    bodies = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
    frames = (
        Frame(VERSION, run, index, attempt, chunk, len(bodies), zlib.crc32(body), body) for chunk, body in enumerate(bodies)
    )
    return [pack(frame) for frame in frames]


def decode_frame(data: bytes, run: str, prompts: int) -> Frame:
    """Check one entry of the stream of ``run``, which has ``prompts`` prompts.

    Raises:
        FrameError: with the reason, which quarantine keeps.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(data)} bytes is over the limit of {MAX_FRAME_BYTES}")
    frame = unpack(data, _FRAME)
    if frame.version not in READABLE:
        raise FrameError(f"frame version {frame.version}, expected one of {sorted(READABLE)}")
    if frame.run != run:
        raise FrameError("frame of another run")
    if not 0 <= frame.index < prompts:
        raise FrameError(f"prompt index {frame.index} is outside the corpus")
    if len(frame.attempt) != 8:
        raise FrameError("attempt id is not 8 bytes")
    if not (1 <= frame.chunks <= MAX_CHUNKS and 0 <= frame.chunk < frame.chunks):
        raise FrameError(f"chunk {frame.chunk} of {frame.chunks}")
    if zlib.crc32(frame.body) != frame.crc32:
        raise FrameError("checksum does not match")
    return frame


def pack(value: msgspec.Struct) -> bytes:
    """A struct as a msgpack map."""
    return bytes(msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)), use_bin_type=True))


def unpack(data: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """A msgpack value of a decoder's struct: what is of another type is refused before anything is made of it.

    Raises:
        FrameError: it is not one.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a valid {decoder.type.__name__.strip('_').lower()}: {error}") from error
