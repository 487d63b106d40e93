"""Every error raylens raises on purpose, in one tree.

    RaylensError            1   failed
    ├── UsageError          2   an option or argument that cannot be used
    │   └── NotDrawn        2   a prompt that lacks what its picture is to show
    ├── InputError          4   a corpus that cannot be read (names file and line)
    ├── ModelError          4   a model that cannot be loaded or lensed
    │   └── DeviceError     4   a GPU that refuses all further work of a process
    ├── BrokerError         5   Redis or Valkey cannot be reached or used
    │   ├── ServerFull      5   it is at its memory limit, for longer than one waits
    │   ├── ServerRefuses   5   it takes no writes, for longer than one waits
    │   └── StreamGone      5   a run's stream is not there: the run has ended, or the server lost it
    ├── ClusterError        5   Ray cannot be reached or used
    ├── StoreError          6   a store that is damaged, locked or not there
    │   ├── OtherFormat     6   a file of a version this raylens does not read
    │   └── Fenced          6   another writer took the run over
    └── FrameError          1   bytes from the stream that are not a valid frame

The number is the exit code of the command line. A message says what is wrong, where, and what to do;
it is printed as one line without a traceback.
"""


class RaylensError(Exception):
    """Base of all errors meant for users."""

    exit_code = 1


class UsageError(RaylensError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class NotDrawn(UsageError):
    """A prompt lacks what its picture is to show; others of its run may have it."""


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


class ModelError(RaylensError):
    """A model that cannot be found, loaded, or lensed correctly."""

    exit_code = 4


class DeviceError(ModelError):
    """A GPU refuses all further work of this process, as after an access out of bounds; the process must end."""


class BrokerError(RaylensError):
    """The Redis or Valkey server cannot be reached or must not be used."""

    exit_code = 5


class ServerFull(BrokerError):
    """The server has been at its memory limit for longer than the caller waits; the writer has made no room."""


class ServerRefuses(BrokerError):
    """The server answers and takes no writes, for longer than the caller waits: another takes its place, or its disk is full."""


class StreamGone(BrokerError):
    """The run's stream is not in the server, for longer than the caller waits: the run has ended, or its driver has."""


class ClusterError(RaylensError):
    """The Ray cluster cannot be reached or does not offer what a run needs."""

    exit_code = 5


class StoreError(RaylensError):
    """A store that is damaged, locked, not there, or of a version this raylens cannot read."""

    exit_code = 6


class OtherFormat(StoreError):
    """A file of the store that another version of raylens wrote; not damage."""


class Fenced(StoreError):
    """Another writer has committed to the run; this one must stop."""


class FrameError(RaylensError):
    """Bytes from the stream that are not a valid frame of this run."""


def one_line(error: Exception) -> str:
    """What a library's error says, as part of a message of ours: in one line, its beginning; of a traceback in it the end."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1]
    return " ".join(text.split())[:300] or type(error).__name__


def named_line(error: Exception) -> str:
    """The same with the error's type before it, for one whose words say little without: ``KeyError: 'rope_theta'``."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


#: Exit code of a run that finished with at least one failed prompt.
EXIT_FAILED_PROMPTS = 3
#: Exit code of a run stopped by Ctrl-C or SIGTERM; the same command resumes it.
EXIT_STOPPED = 130
