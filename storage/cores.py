"""The cores that this process may use."""

import os


def cores() -> int:
    """As many as its affinity allows where the system tells, else as many as there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
