"""Plots over the same layers, one above the other, and maps of layers by tap below them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylens.storage.errors import UsageError
from raylens.storage.fonts import Fonts
from raylens.storage.plots.canvas import CAPTION, KEY_HEIGHT, LEAST_WIDTH, MARGIN, Array, Scale, Sheet, headed
from raylens.storage.plots.panel import ABOVE, BELOW, Axis, Panel, draw_layers
from raylens.storage.taps import TAPS

_HEIGHT, _STEP, _LEAST_PLOT = 1.9, 0.2, 4.5  # of a plot and between layers; all lengths are inches
_LEFT, _RIGHT = 0.75, 2.8
_ROW, _GAP, _ABOVE = 0.22, 0.04, 0.14  # of a row of a map, between map and key, and above the key
_BAR = 5  # the style of bars: pale


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """[L] values, with the [L] lows and [L] highs of a band around them if there is one."""

    values: Array
    band: tuple[Array, Array] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """Curves on an axis.

    Attributes:
        bars: [L] from 0 up, below a single curve that is none of the names beside it.
    """

    axis: Axis
    curves: Sequence[Curve]
    bars: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """Values as colours, a row for each name.

    Attributes:
        scale: what the colours mean.
        names: [N] of the rows, from the top down.
        values: [N, L].
    """

    scale: Scale
    names: Sequence[str]
    values: Array

    @property
    def height(self) -> float:
        """Inches, with the key above and the numbers below."""
        return _ABOVE + KEY_HEIGHT + _GAP + len(self.values) * _ROW + BELOW


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Plots from the top down, then maps.

    Attributes:
        layers: along all of them.
        names: of the curves.
    """

    layers: Sequence[int]
    plots: Sequence[Plot]
    names: Sequence[str]
    maps: Sequence[Map] = ()


def series(rows: Sequence[Mapping[str, Any]], column: str, layers: Sequence[int]) -> Array:
    """[L] values of a column, not a number where a layer has none."""
    found = {row["layer"]: row[column] for row in rows if row[column] is not None}
    return np.array([found.get(layer, np.nan) for layer in layers], dtype=np.float64)


def drawn_taps(groups: Mapping[str, Sequence[Any]]) -> list[str]:
    """The taps that are drawn over layers: not the embedding's, which has one layer, unless no tap has more; and no heads.

    Raises:
        UsageError: there are heads alone.
    """
    names = [tap for tap in TAPS if len(groups.get(tap, ())) > 1] or [tap for tap in TAPS if tap in groups]
    if not names:
        raise UsageError("only attention heads were lensed, which have no curves by layer; raylens query has their numbers")
    return names


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

    def draw(self, fonts: Fonts) -> Sheet:
        """The plots, their layers in line."""
        panels = self.panels
        plot = max(_LEAST_PLOT, len(panels.layers) * _STEP)
        width = max(_LEFT + plot + _RIGHT, LEAST_WIDTH)
        each = ABOVE + _HEIGHT + BELOW
        below = sum(one.height for one in panels.maps)
        sheet = headed(width, MARGIN + below + each * len(panels.plots), self.heading, self.captions, fonts)
        bottom = MARGIN
        for map_ in reversed(panels.maps):
            _draw_map(sheet, map_, panels, bottom, plot)
            bottom += map_.height
        for one in reversed(panels.plots):
            _draw_plot(sheet, one, panels, bottom, plot)
            bottom += each
        return sheet


def _draw_plot(sheet: Sheet, one: Plot, panels: Panels, bottom: float, width: float) -> None:
    panel = Panel(sheet, _LEFT, bottom + BELOW, width, _HEIGHT, panels.layers, one.axis)
    panel.frame()
    if one.bars is not None:
        panel.bars(one.bars, _BAR)
    for style, curve in enumerate(one.curves):
        if curve.band is not None:
            panel.band(*curve.band, style)
    for style, curve in enumerate(one.curves):
        panel.line(curve.values, style)
    if one.bars is None:
        left = _LEFT + width + 0.15
        drawn = [style for style, curve in enumerate(one.curves) if np.isfinite(curve.values).any()]
        panel.key([(style, panels.names[style]) for style in drawn], left, sheet.width - left - MARGIN, CAPTION)


def _draw_map(sheet: Sheet, one: Map, panels: Panels, bottom: float, width: float) -> None:
    floor = bottom + BELOW
    sheet.mesh(_LEFT, floor, (width / len(panels.layers), _ROW), one.scale.paint(one.values[::-1]), edge=0.5)
    left = _LEFT + width + 0.15
    for row, name in enumerate(reversed(one.names)):
        text = sheet.fonts.fit(name, sheet.width - left - MARGIN, CAPTION)
        sheet.text(left, floor + (row + 0.5) * _ROW, text, CAPTION)
    draw_layers(sheet, _LEFT, floor, width, panels.layers)
    sheet.key(_LEFT, floor + len(one.values) * _ROW + _GAP, one.scale)
