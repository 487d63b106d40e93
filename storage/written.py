"""Files that a user asked for: they appear whole, or stay as they were."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from raylens.storage.errors import UsageError


def write_whole(path: Path, data: Callable[[BinaryIO], object], option: str = "--output") -> None:
    """Hand ``data`` the file to write.

    Args:
        option: that named the file, for the message.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # a device or pipe is written, never replaced
            with path.open("wb") as file:
                data(file)
        else:
            _replace(path, data)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}") from error


def _replace(path: Path, data: Callable[[BinaryIO], object]) -> None:
    """Write beside the file and rename, so that an error leaves an older file as it was.

    Under a name that nobody knows before: in a folder like /tmp it could be a link of a stranger's, or another command's.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with unfinished.open("xb") as file:
            data(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
