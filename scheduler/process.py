"""What a process has once, and what raylens may do to it."""

from threading import RLock

#: A process has one Ray, and loads packages once: runs and fits that a program begins in several threads take turns. Those that
#: the corpus of one begins, in the same thread, do not wait for it.
ONE_AT_A_TIME = RLock()

_command = False


def claim() -> None:
    """Say that this process is a command of raylens, whose working folder nobody else in it looks at."""
    global _command
    _command = True


def is_command() -> bool:
    """Whether it is; a program that imports raylens is not."""
    return _command
