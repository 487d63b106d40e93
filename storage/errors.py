"""Every error raylens raises on purpose, in one tree.

    RaylensError            1   failed
    ├── UsageError          2   an option or argument that cannot be used
    │   └── NotDrawn        2   a prompt that lacks what its picture should show
    ├── InputError          4   a corpus that cannot be read (names file and line)
    ├── ModelError          4   a model that cannot be loaded or lensed
    │   └── DeviceError     4   a GPU that refuses all further work of this process
    ├── BrokerError         5   Redis or Valkey cannot be reached or used
    │   ├── ServerFull      5   the server stays at its memory limit
    │   ├── ServerRefuses   5   the server keeps refusing writes
    │   └── StreamGone      5   a run's stream is gone: the run has ended, or the server lost it
    ├── ClusterError        5   Ray cannot be reached or used
    ├── StoreError          6   a store that is damaged, locked or missing
    │   ├── OtherFormat     6   a file in a format that this version does not read
    │   └── Fenced          6   another writer took the run over
    └── FrameError          1   bytes from the stream that are not a valid frame

The number is the exit code of the command line. A message says what is wrong, where, and what to do; the command line prints
it as one line, without a traceback.
"""

from collections.abc import Callable
from typing import Any


class RaylensError(Exception):
    """Base class of every error that raylens raises on purpose; the message says what is wrong, where, and what to do."""

    exit_code = 1


class UsageError(RaylensError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class NotDrawn(UsageError):
    """A prompt lacks what its picture should show; other prompts of the run may have it."""


class InputError(RaylensError):
    """A corpus that cannot be read.

    Args:
        place: the file, or ``file:line``.
        problem: what is wrong there.
        remedy: what the user can do.
    """

    exit_code = 4

    def __init__(self, place: str, problem: str, remedy: str) -> None:
        super().__init__(f"{place}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew, by a copy or in another process, from the message, and not by what the message was made of."""
        return type(self).__new__, (type(self), *self.args), vars(self)


class ModelError(RaylensError):
    """A model that cannot be found, loaded, or lensed correctly."""

    exit_code = 4


class DeviceError(ModelError):
    """A GPU refuses all further work of this process, for example after an out-of-bounds access; the process must end."""


class BrokerError(RaylensError):
    """The Redis or Valkey server cannot be reached or must not be used."""

    exit_code = 5


class ServerFull(BrokerError):
    """The server has been at its memory limit for as long as the caller waits; the writer has made no room."""


class ServerRefuses(BrokerError):
    """The server answers but takes no writes for as long as the caller waits: it is being replaced, or its disk is full."""


class StreamGone(BrokerError):
    """The run's stream has been missing from the server for as long as the caller waits: the run or its driver has ended."""


class ClusterError(RaylensError):
    """The Ray cluster cannot be reached, or lacks what a run needs."""

    exit_code = 5


class StoreError(RaylensError):
    """A store that is damaged, locked or missing, or in a format that this version cannot read."""

    exit_code = 6


class OtherFormat(StoreError):
    """A file of the store in the format of another version of raylens; this is not damage."""


class Fenced(StoreError):
    """Another writer has committed to the run; this one must stop."""


class FrameError(RaylensError):
    """Bytes from the stream that are not a valid frame of this run."""


def brief(given: object, words: Callable[[object], str] = str) -> str:
    """What a user gave, or the beginning of it, for a message of one line; with ``repr`` as Python writes it."""
    if isinstance(given, str):
        return words(_beginning(given))
    try:
        return _beginning(words(given))
    except ValueError:  # an integer of more digits than Python writes
        return f"a number of {type(given).__name__}"


def _beginning(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"


def one_line(error: Exception) -> str:
    """A library's error as one line, for a message of ours: its beginning, or if it holds a traceback, its last line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1]
    return " ".join(text.split())[:300] or type(error).__name__


def named_line(error: Exception) -> str:
    """The same after the error's type, for errors that say little without it: ``KeyError: 'rope_theta'``."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


#: Exit code of a run that finished with at least one failed prompt.
EXIT_FAILED_PROMPTS = 3
#: Exit code of a run stopped by Ctrl-C or SIGTERM; the same command resumes it.
EXIT_STOPPED = 130
