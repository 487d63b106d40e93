"""What the query of an address asks for, checked."""

from starlette.requests import Request

from raylens.storage.errors import UsageError


def text(request: Request, name: str) -> str | None:
    """A parameter; None where it is absent or empty."""
    return request.query_params.get(name) or None


def whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number.

    Raises:
        UsageError: it is none, or out of bounds.
    """
    given = text(request, name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= 12 and least <= int(given) <= most):
        raise UsageError(f"{name}={given[:40]}: give a number from {least} to {most:,}")
    return int(given)


def choice(request: Request, name: str, choices: tuple[str, ...]) -> str:
    """One of some words, the first by default.

    Raises:
        UsageError: another word.
    """
    given = text(request, name) or choices[0]
    if given not in choices:
        raise UsageError(f"{name}={given[:40]}: choose from {', '.join(choices)}")
    return given
