"""Pages of a picture that is too tall or too long to be read at once."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

#: Rows of a page.
MOST_ROWS = 64


def parts(count: int, most: int) -> list[slice]:
    """The fewest parts of at most so many, all of about one length, so that none is a scrap."""
    edges = np.linspace(0, count, -(-count // most) + 1).round().astype(int).tolist()
    return [slice(first, last) for first, last in pairwise(edges)]


def numbered(path: Path, count: int) -> list[Path]:
    """The pages' files: ``name-1.png`` and so on, with zeros in front so that they sort."""
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1)]


def page_caption(number: int, count: int, *shown: Sequence[str]) -> str:
    """Which page it is, and the first and the last of what it shows."""
    spans = [f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0] for names in shown]
    return f"page {number} of {count}: {', '.join(spans)}"
