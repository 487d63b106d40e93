"""What a process has once, and what raylens may do to it."""

from threading import Lock

#: Of a process's Ray and its packages' loading there is one: runs and fits that a program begins in several threads take turns.
ONE_AT_A_TIME = Lock()

_command = False


def claim() -> None:
    """Say that this process is a command of raylens, whose working folder nobody else in it looks at."""
    global _command
    _command = True


def is_command() -> bool:
    """Whether it is; a program that imports raylens is not."""
    return _command
