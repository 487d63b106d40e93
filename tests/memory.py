"""How much memory a test may take."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """Fail if more than ``limit`` bytes are allocated at once inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= limit, f"{peak} bytes at the peak, {limit} allowed"
    finally:
        tracemalloc.stop()
