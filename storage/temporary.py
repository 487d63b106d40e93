"""Temporary files and folders, for which a machine may have no place."""

import errno
from collections.abc import Callable
from tempfile import gettempdir
from typing import ParamSpec, TypeVar

from raylens.storage.errors import RaylensError
from raylens.storage.paths import is_text

P = ParamSpec("P")
T = TypeVar("T")


def temporary(make: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What a call of ``tempfile`` makes, such as ``temporary(mkdtemp, prefix="raylens-")``.

    Raises:
        RaylensError: there is no folder that can be written, or no room in it, or its name can be in no URL of a server.
    """
    try:
        if not is_text(folder := gettempdir()):
            raise OSError(errno.EILSEQ, "not UTF-8", folder)
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
