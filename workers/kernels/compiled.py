"""The one place that knows numba, which has no types."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(fastmath: frozenset[str] = frozenset()) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile a function at its first call, outside the GIL, and keep it on disk for later processes.

    Args:
        fastmath: LLVM flags; neither ``nnan`` nor ``ninf`` is ever among them, since NaN must come out as NaN.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False}

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        try:
            done = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder may be written
            done = numba.njit(**options)(function)
        return cast("Callable[_P, _R]", done)

    return decorate
