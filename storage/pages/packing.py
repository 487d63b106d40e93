"""Arrays and texts as JSON values small enough for a page: byte planes, deflated, in base64. Undone by assets/arrays.js."""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

#: Steps that a nat is cut into: a probability is off by 0.1 % of itself at most.
STEPS = 512


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """An array of unsigned integers or float32: its ``type`` (``u2``, ``f4``, ...), ``shape`` and ``data``.

    The first bytes of all numbers come first, then the second ones: alike bytes lie together and deflate well.
    """
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    planes = plain.reshape(-1).view(np.uint8).reshape(-1, plain.itemsize).T
    return {"type": plain.dtype.str[1:], "shape": list(plain.shape), "data": _deflated(planes.tobytes())}


def packed_logprobs(logprobs: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """[..., k] log probabilities, best first, in steps of 1/512 nat below zero, each after the first as the difference to the one
    before; 128 nats and more are alike.
    """
    steps = np.clip(np.rint(-logprobs.astype(np.float64) * STEPS), 0, 0xFFFF).astype(np.uint16)
    steps[..., 1:] = np.diff(np.maximum.accumulate(steps, axis=-1), axis=-1)
    return packed(steps)


def packed_texts(texts: Sequence[str]) -> str:
    """Texts as one deflated JSON list."""
    return _deflated(orjson.dumps(list(texts)))


def smallest_unsigned(count: int) -> type[np.unsignedinteger[Any]]:
    """The type of the numbers below ``count``."""
    return np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.uint32


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()
