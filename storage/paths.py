"""Paths that a user gave."""

from pathlib import Path

from raylens.storage.errors import UsageError


def given_path(path: str | Path, option: str) -> Path:
    """The path with ``~`` filled in.

    Args:
        option: that gave it, for the message.

    Raises:
        UsageError: the home of a user who is not there, or what names no file.
    """
    try:
        found = Path(path).expanduser()
        found.exists()  # a text in the place of a path may be too long for one
    except (RuntimeError, TypeError, UnicodeEncodeError, ValueError, OSError) as error:
        raise UsageError(f"{option} {path}: names no file here ({error}); check the path") from error
    return found
