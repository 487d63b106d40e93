"""Plots over the same layers, one above the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raylens.storage.fonts import Fonts
from raylens.storage.plots.canvas import CAPTION, LEAST_WIDTH, MARGIN, Array, Sheet, header
from raylens.storage.plots.panel import ABOVE, BELOW, Axis, Panel

_HEIGHT, _STEP, _LEAST_PLOT = 1.9, 0.2, 4.5  # of a plot and between layers; all lengths are inches
_LEFT, _RIGHT = 0.75, 1.9
_BAR = 5  # the style of bars: pale


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """[L] values, with a band around them if there is one."""

    values: Array
    low: Array = field(default_factory=lambda: np.full(1, np.nan))
    high: Array = field(default_factory=lambda: np.full(1, np.nan))


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """Curves on an axis.

    Attributes:
        alone: whether it has one curve of its own, which is none of the names beside it.
        bars: [L] from 0 up, below the curves.
    """

    axis: Axis
    curves: Sequence[Curve]
    alone: bool = False
    bars: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Plots from the top down.

    Attributes:
        layers: along all of them.
        names: of the curves.
    """

    layers: Sequence[int]
    plots: Sequence[Plot]
    names: Sequence[str]


def series(rows: Sequence[Mapping[str, Any]], column: str, layers: Sequence[int]) -> Array:
    """[L] values of a column, not a number where a layer has none."""
    found = {row["layer"]: row[column] for row in rows if row[column] is not None}
    return np.array([found.get(layer, np.nan) for layer in layers], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn of a run, or of two.

    Attributes:
        heading, captions: text above it.
        panels: from the top down.
    """

    heading: str
    captions: tuple[str, ...]
    panels: Panels

    def draw(self, fonts: Fonts) -> Figure:
        """The picture."""
        return stacked(self.heading, self.captions, self.panels, fonts)


def stacked(heading: str, captions: Sequence[str], panels: Panels, fonts: Fonts) -> Figure:
    """Draw plots, their layers in line."""
    plot = max(_LEAST_PLOT, len(panels.layers) * _STEP)
    width = max(_LEFT + plot + _RIGHT, LEAST_WIDTH)
    head = header(heading, captions, width - 2 * MARGIN, fonts, keyed=False)
    each = ABOVE + _HEIGHT + BELOW
    sheet = Sheet(width, MARGIN + each * len(panels.plots) + head.height, fonts)
    head.draw(sheet, MARGIN)
    for number, one in enumerate(reversed(panels.plots)):
        panel = Panel(sheet, _LEFT, MARGIN + BELOW + number * each, plot, _HEIGHT, panels.layers, one.axis)
        panel.frame()
        if one.bars is not None:
            panel.bars(one.bars, _BAR)
        for style, curve in enumerate(one.curves):
            if len(curve.low) == len(curve.values):
                panel.band(curve.low, curve.high, style)
        for style, curve in enumerate(one.curves):
            panel.line(curve.values, style)
        if not one.alone:
            left = _LEFT + plot + 0.15
            panel.key(panels.names, left, width - left - MARGIN, CAPTION)
    return sheet.figure
