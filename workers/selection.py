"""Which layers and positions are lensed: ``all``, ``0,5-10``, ``::4``; ``last``, ``all``, ``last:8``, ``2:-1``."""

import re

from raylens.storage.errors import UsageError

_SLICE = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?(?::(-?\d{1,18}))?")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")
_LAST = re.compile(r"last:(\d{1,18})")


def parse_slice(text: str) -> slice | None:
    """A Python slice from ``A:B`` or ``A:B:C``; None if it is not one."""
    match = _SLICE.fullmatch(text)
    if match is None or match[3] == "0":
        return None
    return slice(*(int(part) if part else None for part in match.groups()))


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
    if ":" in text:
        part = parse_slice(text)
        chosen = set(range(n_layers)[part]) if part is not None else set()
    else:
        chosen = _listed(f"{option} {spec!r}", text)
    if not chosen:
        raise UsageError(f"{option} {spec!r}: chooses no layer; write all, 0,5-10 or a slice such as ::4")
    if max(chosen) >= n_layers:
        raise UsageError(f"{option} {spec!r}: the model has layers 0 to {n_layers - 1}")
    return tuple(sorted(chosen))


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


def select_positions(spec: str, n_tokens: int) -> list[int]:
    """Positions of a prompt of ``n_tokens`` tokens, ascending; empty where a slice misses a short prompt.

    Raises:
        UsageError: not a position list.
    """
    if spec == "all":
        return list(range(n_tokens))
    if spec == "last":
        return list(range(n_tokens))[-1:]
    match = _LAST.fullmatch(spec)
    if match and int(match[1]) > 0:
        return list(range(max(0, n_tokens - int(match[1])), n_tokens))
    part = parse_slice(spec) if ":" in spec else None
    if part is None or part.step is not None:
        raise UsageError(f"--positions {spec!r}: write last, all, last:N or A:B")
    return list(range(n_tokens)[part])


def layers_of(tap: str, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a tap: the embedding's is of layer 0 only."""
    return (0,) if tap == "resid_pre" else layers


def chosen_places(taps: tuple[str, ...], layers: tuple[int, ...]) -> frozenset[tuple[str, int]]:
    """(tap, layer) of all that is read out at a position."""
    return frozenset((tap, layer) for tap in taps for layer in layers_of(tap, layers))
