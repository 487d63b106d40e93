"""Errors in the words of Python: an option of the command line, as messages have it, is an argument there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from raylens.storage.errors import RaylensError

#: What is quoted, and commands to be given in a shell, stay as they are.
_QUOTED = r"(?<!\w)(?P<quote>['\"]).*?(?P=quote)"
_COMMAND = r"\b(?:raylens |run --fresh|ray start|pip |docker )[^;:]*"
_OPTION = r"(?<![\w-])--(?P<option>[a-z][a-z-]*)"
_PART = re.compile(f"{_QUOTED}|{_COMMAND}|{_OPTION}", re.DOTALL)


@contextmanager
def arguments() -> Iterator[None]:
    """Within it, or in a function that it decorates, errors say ``top_k`` where they would say ``--top-k``."""
    try:
        yield
    except RaylensError as error:
        error.args = tuple(as_arguments(part) for part in error.args)
        raise


def as_arguments(message: str) -> str:
    """The message with arguments in place of options."""
    return _PART.sub(lambda part: part[0] if part["option"] is None else part["option"].replace("-", "_"), message)
