"""Numbers of things in words."""

from collections.abc import Mapping


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 record``, ``1,200 records``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def failed(kinds: Mapping[str, int]) -> str:
    """``no failures``, ``1 empty, 2 too_long failures``."""
    numbers = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    return f"{numbers or 'no'} failure{'' if sum(kinds.values()) == 1 else 's'}"
