"""Which positions of a prompt are meant: ``all``, ``last``, ``last:8``, ``3``, ``-1``, ``2:-1``; so wherever they are taken."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from raylens.storage.errors import UsageError
from raylens.storage.python_values import plain

#: What may be written, for messages and help.
FORMS = "all, last, last:N, a position, or A:B with A before B (B not included)"
_LAST = re.compile(r"last(?::([0-9]{1,9}))?")
_ONE = re.compile(r"-?[0-9]{1,9}")
_SPAN = re.compile(r"(-?[0-9]{1,9})?:(-?[0-9]{1,9})?")


def forms_for(text: str) -> str:
    """What to write in place of a text that is none of the forms, or has a number that no position is."""
    return f"{FORMS}, in numbers of at most 9 digits" if re.search(r"[0-9]{10}", text) else FORMS


def position_text(given: Any) -> Any:
    """A number as the text that stands for it; anything else as it is, also a list, whose numbers need not follow each other."""
    given = plain(list(given) if isinstance(given, range | set | frozenset) else given, "--positions")
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions that follow each other.

    Attributes:
        first, end: as in a Python slice: below 0 they count from the end of the prompt, and without an end it goes to that.
        last: instead, so many of those that there are; 0 where first and end are meant.
    """

    first: int = 0
    end: int | None = None
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what a user has written.

        Raises:
            UsageError: it is none of the forms, or would choose nothing of any prompt.
        """
        if text == "all":
            return cls()
        if (match := _LAST.fullmatch(text)) and (count := int(match[1] or 1)):
            return cls(last=count)
        if _ONE.fullmatch(text):
            return cls(int(text), int(text) + 1 or None)
        if match := _SPAN.fullmatch(text):
            found = cls(int(match[1] or 0), int(match[2]) if match[2] else None)
            if found.end is None or (found.end != 0 and (found.first < found.end or found.end < 0 <= found.first)):
                return found
        raise UsageError(f"--positions {text[:100]!r}: write {forms_for(text)}")

    @property
    def goes_on(self) -> bool:
        """Whether what is written after a prompt is meant too."""
        return self.end is None and self.first >= 0 and not self.last

    def among(self, there: Sequence[int], tokens: int) -> list[int]:
        """Those that are there, of the ascending positions of a prompt.

        Args:
            tokens: of the prompt.
        """
        if self.last:
            return list(there[-self.last :])
        meant = range(tokens)[self.first : self.end]
        return [position for position in there if position in meant]
