"""The one place that knows numba, which has no types."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba

#: Of all code of this folder: numba keeps what it compiled for as long as the function's own file is the same, and does not look
#: at the files of what is compiled into it.
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()[:12]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def is_off() -> bool:
    """Whether numba was told to leave functions as they are: loops over single numbers, thousands of times as slow."""
    return bool(numba.config.DISABLE_JIT)


def compiled(fastmath: frozenset[str] = frozenset()) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile a function at its first call, outside the GIL, and keep it on disk for later processes.

    Args:
        fastmath: LLVM flags; neither ``nnan`` nor ``ninf`` is ever among them, since NaN must come out as NaN.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False}

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        function.__qualname__ += f"_{_DIGEST}"  # by which numba names the files
        try:
            done = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder may be written
            done = numba.njit(**options)(function)
        return cast("Callable[_P, _R]", done)

    return decorate
