"""The grid in a terminal: in colour where it is one, plain text where it is a pipe."""

from collections.abc import Sequence

import matplotlib.colors
import numpy as np
from rich.text import Text

from raylens.storage.labels import cell_width, fit
from raylens.storage.plots.canvas import Array, Scale, ink
from raylens.storage.plots.grid import Grid

#: Narrowest and widest cell, in characters.
NARROW, WIDE = 5, 14
_GAP = 1
_MARK = "✓"


def grid_lines(picture: Grid, width: int | None) -> list[Text]:
    """A line for each row of the grid, the last layer first, between the tokens that come next and the tokens read.

    Args:
        picture: what to show.
        width: of the terminal, in characters; the last columns that fit are shown. None shows all, each as wide as its text.
    """
    columns = _columns(picture, width)
    sizes = [_size(picture, column, None if width is None else WIDE) for column in columns]
    names = max(map(len, (*picture.rows, "next token")))
    colours = picture.scale.paint(picture.values)
    lines = [_plain("next token", names, [_next(picture, column) for column in columns], sizes)]
    for row in reversed(range(len(picture.rows))):
        line = Text(f"{picture.rows[row]:>{names}}")
        for column, size in zip(columns, sizes, strict=True):
            line.append(" " * _GAP).append(_padded(picture.texts[row][column], size), style=_style(colours[row, column]))
        lines.append(line)
    lines.append(_plain("token", names, [picture.inputs[column] for column in columns], sizes))
    lines.append(_plain("position", names, [str(picture.positions[column]) for column in columns], sizes))
    return lines


def legend(scale: Scale, width: int) -> Text:
    """What the colours of a grid mean, in one line that fits into a terminal's width if it can: some values in their colours."""
    line = Text()
    for colour, (_, text) in zip(scale.paint(np.array([value for value, _ in scale.ticks])), scale.ticks, strict=True):
        line.append(f" {text} ", style=_style(colour))
    return line.append(f" {fit(scale.label, max(1, width - len(line) - 1))}", style="dim")


def _style(rgba: Array) -> str:
    return f"{matplotlib.colors.to_hex(ink(rgba))} on {matplotlib.colors.to_hex(tuple(rgba))}"


def _columns(picture: Grid, width: int | None) -> list[int]:
    """The last columns whose cells fit beside the rows' names."""
    count = len(picture.positions)
    if width is None:
        return list(range(count))
    room = width - max(map(len, (*picture.rows, "next token")))
    chosen: list[int] = []
    for column in reversed(range(count)):
        room -= _GAP + _size(picture, column, WIDE)
        if room < 0 and chosen:
            break
        chosen.append(column)
    return chosen[::-1]


def _size(picture: Grid, column: int, most: int | None) -> int:
    texts = [row[column] for row in picture.texts]
    texts += [picture.inputs[column], _next(picture, column), str(picture.positions[column])]
    widest = max(NARROW, *map(cell_width, texts))
    return widest if most is None else min(widest, most)


def _next(picture: Grid, column: int) -> str:
    return f"{picture.nexts[column]}{_MARK if picture.hits[column] else ''}"


def _plain(name: str, names: int, texts: Sequence[str], sizes: Sequence[int]) -> Text:
    cells = "".join(" " * _GAP + _padded(text, size) for text, size in zip(texts, sizes, strict=True))
    return Text(f"{name:>{names}}{cells}".rstrip(), style="dim")


def _padded(text: str, size: int) -> str:
    shown = fit(text, size)
    return shown + " " * (size - cell_width(shown))
