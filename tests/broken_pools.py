"""A pool that breaks while it starts a process, which happens by itself to about one of thirty that are killed so early.

From Python 3.12 on a pool waits with all that until the process is started, as it did in the first releases of 3.11. There the
same is killed at the same time.
"""

import subprocess
import sys

from tests.waiting import HUNG

_BREAKS = """
import gc, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess

def feeding():  # for ever, if the first died with the lock under which the second would read; so it is waited for a while
    return any(one.name == "QueueFeederThread" for one in threading.enumerate()) and time.monotonic() < LATEST

def break_pool(first, until):
    (pool,) = (one for one in gc.get_objects() if isinstance(one, ProcessPoolExecutor))
    global LATEST
    first.kill()
    LATEST = time.monotonic() + 10
    waits = sys.version_info >= (3, 12) or sys.version_info < (3, 11, 7)
    while first.is_alive() if waits else not until(pool):
        time.sleep(0.001)

begin = SpawnProcess.start
def start(self):
    others = active_children()
    if len(others) == 1 and BEFORE:  # the pool has closed what the second would read from
        break_pool(others[0], lambda pool: pool._call_queue._reader.closed)
    begin(self)
    if len(others) == 1 and not BEFORE:  # the pool stops feeding its processes, and is told of the second only then
        break_pool(others[0], lambda pool: pool._broken and not feeding())
SpawnProcess.start = start
"""


def run_broken(program: str, before: bool, first_line: bytes = b"") -> tuple[int, str]:
    """Run Python code in a process of its own, of whose pool the first process is killed while the second is being started.

    Args:
        program: the code, which has a pool.
        before: whether it is killed before the second is there, or after.
        first_line: of its input, which is then kept open.

    Returns:
        Its exit code and stderr.

    Raises:
        TimeoutExpired: it does not end.
    """
    command = [sys.executable, "-c", f"BEFORE = {before}{_BREAKS}{program}"]
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
