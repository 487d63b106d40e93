"""Temporary files and folders, for which a machine may have no place."""

import errno
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from raylens.storage.errors import RaylensError

P = ParamSpec("P")
T = TypeVar("T")


def temporary(make: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What a call of ``tempfile`` makes, such as ``temporary(mkdtemp, prefix="raylens-")``.

    Raises:
        RaylensError: there is no folder that can be written, or no room in it.
    """
    try:
        return make(*args, **named)
    except OSError as error:
        raise no_place(error) from error


def lacks_place(error: OSError) -> bool:
    """Whether ``tempfile`` found no folder that can be written, whoever asked it: torch does when it is imported."""
    return error.errno == errno.ENOENT and "usable temporary directory" in str(error.strerror)


def no_place(error: OSError) -> RaylensError:
    """The error for users."""
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return RaylensError(f"no temporary file can be made ({what}); set TMPDIR to a folder that you can write to")
