"""Which layers of a model are meant: ``all``, ``0,5-10``, ``-1``, ``::4``; so wherever they are taken."""

import re
from typing import Any

from raylens.storage.errors import UsageError, brief
from raylens.storage.python_values import plain

#: What may be written, for messages and help.
FORMS = "all, a list such as 0,5-10, a layer such as -1, or a slice such as ::4"
_SLICE = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?(?::(-?\d{1,18}))?", re.ASCII)
_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)
_ONE = re.compile(r"-?\d{1,18}", re.ASCII)


def as_text(given: Any, option: str = "--layers") -> Any:
    """A number, or a list, set or array of numbers, as the text that stands for it, also of positions; anything else as it is.

    Raises:
        UsageError: a number that is far too large.
    """
    given = plain(given, option)
    several = isinstance(given, list | tuple | range | set | frozenset)
    numbers = plain(list(given), option) if several else [given]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return given
    return ",".join(map(str, sorted(numbers) if isinstance(given, set | frozenset) else numbers))


def select_layers(spec: str, n_layers: int, option: str = "--layers") -> tuple[int, ...]:
    """Layer numbers in ascending order; below 0 they count from the last.

    Args:
        option: that was given the spec, for messages.

    Raises:
        UsageError: not a layer list, or a layer the model does not have.
    """
    text = spec.replace(" ", "")
    if text == "all":
        return tuple(range(n_layers))
    given = f"{option} {brief(spec, repr)}"
    chosen = _sliced(text, n_layers) if ":" in text else _listed(given, text, n_layers)
    if not chosen:
        raise UsageError(f"{given}: chooses no layer of {n_layers}; write {FORMS}")
    return tuple(sorted(chosen))


def _sliced(text: str, n_layers: int) -> set[int]:
    match = _SLICE.fullmatch(text)
    first, end, step = (int(part) if part else None for part in match.groups()) if match else (0, 0, None)
    return set(range(n_layers)[first:end:step]) if step != 0 else set()


def _listed(given: str, text: str, n_layers: int) -> set[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        if match := _RANGE.fullmatch(part):
            first, last = int(match[1]), int(match[2])
        elif _ONE.fullmatch(part):
            first = last = int(part) + n_layers if part.startswith("-") else int(part)
        else:
            raise UsageError(f"{given}: {brief(part, repr)} is not a layer; write {FORMS}")
        if first > last:
            raise UsageError(f"{given}: {brief(part, repr)} runs downwards; write {FORMS}")
        if first < 0 or last >= n_layers:
            raise UsageError(f"{given}: the model has layers 0 to {n_layers - 1}")
        chosen.update(range(first, last + 1))
    return chosen
