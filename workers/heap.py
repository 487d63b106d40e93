"""Memory that the process holds and does not use, back to the system."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Bytes of rows whose read-out takes seconds, beside which the milliseconds for this are nothing.
LARGE = 32 << 20


@contextmanager
def heap_trimmed(device: torch.device, size: int) -> Iterator[None]:
    """Before and after rows of that many bytes are read out on a CPU, if they are many, give back what is free.

    torch's aligned allocations leave holes that glibc does not fill with the next ones: a heap with 110 MiB in use grew to 400
    over a prompt of 2,048 tokens, and to 800 over one of 4,096 (docs/benchmarks.md). Other C libraries are left alone.
    """
    large = device.type == "cpu" and size >= LARGE and sys.platform == "linux"
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if large else None
    if trim is not None:
        trim(0)
    yield
    if trim is not None:
        trim(0)
