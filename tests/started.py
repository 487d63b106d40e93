"""Long-running programs that a test starts beside itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.waiting import HUNG

#: The environment with the programs of this virtual environment first.
TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def started(log: Path, command: list[str], env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A program in the log's folder, told to end at the end, and with it what it has left in its group."""
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=HUNG)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
