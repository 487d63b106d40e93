"""A pool that breaks while it starts a process, which happens by itself to about one of thirty that are killed so early."""

import subprocess
import sys

from tests.waiting import HUNG

_SECOND_STARTS_LATE = """
import gc, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess

begin = SpawnProcess.start
def start(self):
    others = active_children()
    begin(self)
    if len(others) == 1:
        others[0].kill()
        (pool,) = (one for one in gc.get_objects() if isinstance(one, ProcessPoolExecutor))
        # it stops feeding its processes, and is told of the second only then
        while not pool._broken or any(one.name == "QueueFeederThread" for one in threading.enumerate()):
            time.sleep(0.001)
SpawnProcess.start = start
"""


def run_broken(program: str, first_line: bytes = b"") -> tuple[int, str]:
    """Run Python code in a process of its own, of whose pool the first process is killed while the second is being started.

    Args:
        program: the code, which has a pool.
        first_line: of its input, which is then kept open.

    Returns:
        Its exit code and stderr.

    Raises:
        TimeoutExpired: it does not end.
    """
    command = [sys.executable, "-c", _SECOND_STARTS_LATE + program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(first_line)
            process.stdin.flush()
            code = process.wait(HUNG)
            assert process.stderr is not None
            return code, process.stderr.read().decode()
        finally:
            process.kill()
