"""Paths that a user gave."""

from pathlib import Path

from raylens.storage.errors import UsageError, brief


def is_text(name: str) -> bool:
    """Whether a name is UTF-8: other bytes can be in no JSON and on no page."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def given_path(path: str | Path, option: str) -> Path:
    """The path with ``~`` filled in.

    Args:
        option: that gave it, for the message.

    Raises:
        UsageError: the home of a user who is not there, what names no file, or a name that Arrow and DuckDB cannot open.
    """
    try:
        found = Path(path).expanduser()
        found.exists()  # a text in the place of a path may be too long for one
    except (RuntimeError, TypeError, UnicodeEncodeError, ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else brief(error)
        raise UsageError(f"{option} {brief(path)}: names no file here ({why}); check the path") from error
    if not is_text(str(found)):
        raise UsageError(f"{option} {path}: not UTF-8; rename it, or give a link to it that is")
    return found
