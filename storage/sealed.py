"""JSON files that tell whether they are as they were written: ``sha256`` in them is of all the rest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from raylens.storage.errors import StoreError
from raylens.storage.json_values import unheld

_SEAL = "sha256"


def sealed(value: object) -> bytes:
    """The file of an object, indented for people.

    Args:
        value: what msgspec encodes as an object.
    """
    fields = msgspec.json.decode(msgspec.json.encode(value), type=dict[str, Any])
    return msgspec.json.format(msgspec.json.encode({**fields, _SEAL: _digest(fields)}), indent=2) + b"\n"


def unsealed(path: Path, data: bytes) -> dict[str, Any]:
    """What the file says; one from before there were seals is not checked.

    Raises:
        StoreError: it is no object, or another than was written.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        seal = fields.pop(_SEAL, None)
        if seal is None or seal == _digest(fields):
            if wrong := unheld(fields):
                raise StoreError(f"{path}: damaged ({wrong})")
            return fields
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged ({error})") from error
    raise StoreError(f"{path}: damaged (it is not what was written)")


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
