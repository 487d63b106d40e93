"""Pools of processes of which one is killed: the owner, or one of those that work for it."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, parent_process


def end_with_parent() -> None:
    """Called in a process of a pool: it would wait for work for ever, as it holds both ends of its own queue."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def work_given() -> Iterator[None]:
    """Around what gives work to a pool, which starts processes for it.

    Raises:
        BrokenProcessPool: one cannot be started; or, before Python 3.12, another died meanwhile, and the pool closed its pipes.
    """
    try:
        yield
    except OSError as error:
        raise BrokenProcessPool(str(error)) from error


def end_processes() -> None:
    """Called by a program of which a pool broke: before Python 3.12 it may wait for ever for one that was being started then."""
    for process in active_children():
        process.kill()
