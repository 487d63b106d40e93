"""Which layers are lensed: ``all``, ``0,5-10``, ``::4``."""

import re

from raylens.storage.errors import UsageError

_SLICE = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?(?::(-?\d{1,18}))?")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


def select_layers(spec: str, n_layers: int, option: str = "--layers") -> tuple[int, ...]:
    """Layer numbers in ascending order.

    Args:
        option: that was given the spec, for messages.

    Raises:
        UsageError: not a layer list, or a layer the model does not have.
    """
    text = spec.replace(" ", "")
    if text == "all":
        return tuple(range(n_layers))
    chosen = _sliced(text, n_layers) if ":" in text else _listed(f"{option} {spec!r}", text)
    if not chosen:
        raise UsageError(f"{option} {spec!r}: chooses no layer; write all, 0,5-10 or a slice such as ::4")
    if max(chosen) >= n_layers:
        raise UsageError(f"{option} {spec!r}: the model has layers 0 to {n_layers - 1}")
    return tuple(sorted(chosen))


def _sliced(text: str, n_layers: int) -> set[int]:
    match = _SLICE.fullmatch(text)
    first, end, step = (int(part) if part else None for part in match.groups()) if match else (0, 0, None)
    return set(range(n_layers)[first:end:step]) if step != 0 else set()


def _listed(given: str, text: str) -> set[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise UsageError(f"{given}: {part!r} is no layer; write all, 0,5-10 or a slice such as ::4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > 100_000:
            raise UsageError(f"{given}: {part!r} is too long a range")
        chosen.update(range(first, last + 1))
    return chosen


def layers_of(tap: str, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a tap: the embedding's is of layer 0 only."""
    return (0,) if tap == "resid_pre" else layers


def chosen_places(taps: tuple[str, ...], layers: tuple[int, ...]) -> frozenset[tuple[str, int]]:
    """(tap, layer) of all that is read out at a position."""
    return frozenset((tap, layer) for tap in taps for layer in layers_of(tap, layers))
