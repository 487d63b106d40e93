"""What the driver of a run says of itself while it is at work, and the wish that it stop: two small files of the run's folder."""

import os
import socket
import time
from contextlib import suppress
from typing import Annotated

import msgspec

from raylens.storage.durable import TEMPORARY, decode_json, not_through_links, read_file, touch
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder

#: Version of the file.
FORMAT = 1
#: Seconds between two pulses, and after which a driver counts as silent: one that waits for its server may be late.
PULSE_SECONDS = 2.0
SILENT_SECONDS = 60.0

_Number = Annotated[int, msgspec.Meta(ge=-(1 << 62), lt=1 << 62)]  # the file may be anybody's, and is printed as JSON


class Pulse(msgspec.Struct, frozen=True):
    """A driver at one moment. A hint for people and monitors: nothing depends on it.

    Attributes:
        host, pid: of the driver.
        at: seconds since 1970, by the driver's clock.
        actors, ready: asked for, and of those how many have loaded the model.
        deaths: of actors since the driver began.
        resubmitted: prompts submitted again since then, after deaths and lost results.
        in_flight_bytes: submitted and not stored, as expected or known.
        unstored_prompts, unstored_bytes: published and not stored: what the writer is behind.
        waiting: what the run last said that it waits for; empty after a commit.
        pids: among which processes ``pid`` is one, as ``pid_namespace`` tells: a container may have its host's name.
    """

    format: int
    host: str
    pid: _Number
    at: float
    actors: _Number
    ready: _Number
    deaths: _Number
    resubmitted: _Number
    in_flight_bytes: _Number
    unstored_prompts: _Number
    unstored_bytes: _Number
    waiting: str
    pids: str = ""

    def state(self, now: float) -> str:
        """``running``, ``died`` if its process on this machine is gone, or ``silent``."""
        if self.host == socket.gethostname() and self.pids == pid_namespace() and not _alive(self.pid):
            return "died"
        return "running" if now - self.at <= SILENT_SECONDS else "silent"


def pid_namespace() -> str:
    """What tells the processes that this one sees from those of another container; empty where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  no path
    except OSError:
        return ""


def write_pulse(folder: RunFolder, pulse: Pulse) -> None:
    """Replace the last pulse. A disk that is full or away is not this file's to complain of."""
    temporary = folder.pulse.with_name(f".{folder.pulse.name}{TEMPORARY}")
    with suppress(OSError):
        with open(temporary, "wb", opener=not_through_links) as file:
            file.write(msgspec.json.encode(pulse))
        temporary.replace(folder.pulse)


def read_pulse(folder: RunFolder) -> Pulse | None:
    """The last pulse; None if no driver is at work, or if what is there cannot be read."""
    try:
        return decode_json(folder.pulse, read_file(folder.pulse), Pulse, FORMAT)
    except (OSError, StoreError):
        return None


def ask_to_stop(folder: RunFolder) -> Pulse:
    """Ask the driver of a run to stop, as Ctrl-C would, on whichever machine it is; its last pulse.

    Raises:
        StoreError: no driver is at work, or the folder cannot be written.
    """
    pulse = read_pulse(folder)
    if pulse is None or pulse.state(time.time()) == "died":
        raise StoreError(f"{folder.root}: no driver is working on this run; there is nothing to cancel")
    touch(folder.cancel)
    return pulse


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # a file that is not ours may name a process that cannot be
        return False
    except PermissionError:  # another user's
        return True
    return True
