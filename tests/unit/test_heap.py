"""Free memory goes back to the system around a large read-out, and only there."""

import psutil
import torch

from raylens.workers.heap import LARGE, heap_trimmed

CPU = torch.device("cpu")
_MIB = 1 << 20


def heap_with_holes() -> list[torch.Tensor]:
    """256 MiB of a heap, of which every second MiB is free."""
    torch.ones(30 * _MIB, dtype=torch.uint8)  # once it is freed, glibc takes what is smaller from the heap
    blocks = [torch.ones(_MIB, dtype=torch.uint8) for _ in range(256)]
    return blocks[::2]


def resident() -> float:
    """MiB of this process."""
    return psutil.Process().memory_info().rss / _MIB


def test_holes_go_back_before_many_rows_are_read() -> None:
    kept = heap_with_holes()
    before = resident()
    with heap_trimmed(CPU, LARGE - 1):
        assert resident() > before - 32, "few rows are not worth the time"
    with heap_trimmed(CPU, LARGE):
        assert resident() < before - 96
    assert all(bool((block == 1).all()) for block in kept)


def test_what_is_freed_meanwhile_goes_back() -> None:
    with heap_trimmed(CPU, LARGE):
        kept = heap_with_holes()
        before = resident()
    assert resident() < before - 96
    assert len(kept) == 128


def test_of_rows_on_another_device_nothing_is_given_back() -> None:
    """There milliseconds count."""
    kept = heap_with_holes()
    before = resident()
    with heap_trimmed(torch.device("meta"), LARGE):
        assert resident() > before - 32
    assert len(kept) == 128
