"""Which rows of a forward pass an edit is about. Positions are absolute: they count a sequence's own tokens, without padding."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raylens.storage.errors import UsageError
from raylens.storage.positions import Positions, forms_for

_LIST = re.compile(r"-?[0-9]{1,9}(,-?[0-9]{1,9})+")


@dataclass(frozen=True, slots=True)
class Span:
    """What one row of a forward pass holds of its sequence.

    Attributes:
        prompt: tokens of the prompt, by which ``last`` and negative numbers are meant.
        first: position of the row's first column; below 0 where the row is padded on the left.
        stop: position after its last token; columns from there on are padding.
    """

    prompt: int
    first: int
    stop: int


def check_positions(spec: str) -> None:
    """Refuse what is no choice of positions.

    Raises:
        UsageError: with the forms there are.
    """
    if _LIST.fullmatch(spec) is None:
        try:
            Positions.parse(spec)
        except UsageError as error:
            raise UsageError(f"{spec[:100]!r}: write {forms_for(spec)}, or a list of positions") from error


def edited(spec: str, span: Span) -> list[int]:
    """The edited positions among those of a row, ascending; ones that its sequence does not have are left out.

    They are those of the prompt; ``all``, and a slice without an end such as ``2:``, go on over the tokens generated after it.
    """
    if "," in spec:
        chosen = _listed(spec, span.prompt)
    else:
        meant = Positions.parse(spec)
        chosen = meant.among(range(span.prompt), span.prompt)
        if meant.goes_on:
            chosen += range(max(span.prompt, meant.first), span.stop)
    return [position for position in chosen if max(0, span.first) <= position < span.stop]


def _listed(spec: str, tokens: int) -> list[int]:
    numbers = (int(part) for part in spec.split(","))
    return sorted({number + tokens if number < 0 else number for number in numbers} & set(range(tokens)))


def places(spec: str, spans: Sequence[Span], columns: int) -> tuple[list[int], list[int]]:
    """Numbers of the edited rows in the flattened [B * columns, D] hidden states, and the position of each."""
    found = [
        (number * columns + position - span.first, position)
        for number, span in enumerate(spans)
        for position in edited(spec, span)
    ]
    return [row for row, _ in found], [position for _, position in found]
