"""Processes of a pool whose owner is killed."""

import os
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """Called in a process of a pool: it would wait for work for ever, as it holds both ends of its own queue."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
