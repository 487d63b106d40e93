"""Threads that each multiply and read out rows of their own.

One product spread over all cores waits for the slowest of them at every block, and only then is read out. Rows of hidden
states have nothing to do with each other, so each core takes its own through product and read-out; no core waits.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch

_T = TypeVar("_T")
_R = TypeVar("_R")


def shares(count: int, parts: int) -> list[slice]:
    """So many slices of ``count`` rows, all of about the same length."""
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def each(work: Callable[[_T], _R], parts: Sequence[_T], workers: int) -> list[_R]:
    """The results of all parts in order; raises what the first failing part raised."""
    if workers == 1:
        return [work(part) for part in parts]
    return list(_pool(workers).map(work, parts))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    all_started = Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # has torch set this thread up, which would undo the next line if it came later
        torch.set_num_threads(1)  # of products begun in this thread
        with suppress(BrokenBarrierError):  # of one that could not be started the caller of all is told
            all_started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="raylens-lens", initializer=start)
    try:
        for _ in range(workers):
            pool.submit(int)
    except RuntimeError:  # there may be no more threads here; those that have started must not wait for them
        all_started.abort()
        pool.shutdown()
        raise
    all_started.wait()
    torch.set_num_threads(workers)  # it is also what torch gives to threads begun later, which are none of this pool's
    return pool
