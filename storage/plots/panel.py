"""A plot over layers: axis, lines, bands and bars, on a sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raylens.storage.plots.canvas import CELL, MARGIN, Array, Dash, Sheet

#: Room below a panel for the layers' numbers and the word below them, and above it for the axis's label; inches.
BELOW, ABOVE = 0.5, 0.25
_GREY, _PALE = "#595959", "#dddddd"
_MOST_NUMBERS = 40
_NOTHING = 1e-9  # what is less is rounding
#: Okabe and Ito's colours that contrast with white, each with dashes of its own, so that neither is needed alone.
STYLES: tuple[tuple[str, Dash], ...] = (
    ("#0072b2", "-"),
    ("#d55e00", "--"),
    ("#007a58", "-."),
    ("#a34c7d", ":"),
    ("#000000", (0, (6, 2))),
    ("#56b4e9", (0, (1, 1))),
    ("#b07a00", (0, (4, 1, 1, 1, 1, 1))),
    ("#595959", (0, (8, 3, 2, 3))),
)


@dataclass(frozen=True, slots=True)
class Axis:
    """The vertical axis.

    Attributes:
        label: what the values are.
        low, high: values at its ends, as drawn: of ranks minus the decimal logarithm.
        ticks: values to mark, each with its text.
        logarithmic: whether it is of ranks.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def place(self, values: Array) -> Array:
        """Where values lie between the ends, 0 to 1."""
        return ((-np.log10(values) if self.logarithmic else values) - self.low) / (self.high - self.low)


def share_axis(label: str) -> Axis:
    """Of probabilities or shares: 0 to 1 whatever the values, so that pictures compare."""
    return Axis(label, 0.0, 1.0, tuple((v / 4, f"{v / 4:g}") for v in range(5)))


def upward_axis(label: str, highest: float) -> Axis:
    """From 0 up to the first round number at or above the highest value; to 1 where all are 0."""
    highest = highest if highest > _NOTHING else 1.0
    step = _round_step(highest / 5)
    steps = max(1, math.ceil(highest / step))
    return Axis(label, 0.0, step * steps, tuple((step * n, f"{step * n:g}") for n in range(steps + 1)))


def downward_axis(label: str, lowest: float) -> Axis:
    """From 0 down to the first round number at or below the lowest value."""
    up = upward_axis(label, -lowest)
    return Axis(label, -up.high, 0.0, tuple((-value, f"{0 - value:g}") for value, _ in up.ticks))


def signed_axis(label: str, farthest: float) -> Axis:
    """Around 0, as far on either side."""
    up = upward_axis(label, farthest)
    values = sorted({-value for value, _ in up.ticks} | {value for value, _ in up.ticks})
    return Axis(label, -up.high, up.high, tuple((value, f"{value + 0:g}") for value in values))


def rank_axis(label: str, highest: float) -> Axis:
    """Of ranks, 1 at the top, on a log scale down to the power of ten at or above the highest."""
    powers = max(1, math.ceil(math.log10(max(2.0, highest))))
    marks = [factor * 10**power for power in range(powers) for factor in ((1, 2, 5) if powers < 3 else (1,))] + [10**powers]
    ticks = tuple((-math.log10(rank), f"{rank:,}") for rank in marks)
    return Axis(label, float(-powers), 0.0, ticks, logarithmic=True)


def _round_step(least: float) -> float:
    """The first of 1, 2 and 5 times a power of ten at or above a value."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


@dataclass(frozen=True, slots=True)
class Panel:
    """Where a plot lies on its sheet; inches.

    Attributes:
        layers: the numbers along it, equally far apart.
    """

    sheet: Sheet
    left: float
    bottom: float
    width: float
    height: float
    layers: Sequence[int]
    axis: Axis

    def frame(self) -> None:
        """The axis: pale lines with values, numbers of layers, labels."""
        for value, text in self.axis.ticks:
            y = self.bottom + (value - self.axis.low) / (self.axis.high - self.axis.low) * self.height
            self.sheet.lines([(self.left, y, self.left + self.width, y)], 0.6, _PALE)
            self.sheet.text(self.left - 0.08, y, text, align="right")
        draw_layers(self.sheet, self.left, self.bottom, self.width, self.layers)
        label = self.sheet.fonts.fit(self.axis.label, self.sheet.width - self.left - MARGIN, CELL)
        self.sheet.text(self.left, self.bottom + self.height + 0.12, label, colour=_GREY)

    def line(self, values: Array, style: int) -> None:
        """[L] values as a line with dots; it breaks where one is not a number."""
        colour, dash = STYLES[style]
        self.sheet.path(self._x(), self._y(values), colour, dash)

    def band(self, low: Array, high: Array, style: int) -> None:
        """Between [L] low and [L] high values, in the pale colour of a line."""
        self.sheet.band(self._x(), self._y(low), self._y(high), STYLES[style][0])

    def bars(self, values: Array, style: int) -> None:
        """[L] bars from 0 up."""
        step = self.width / len(self.layers)
        lefts = self.left + step * (np.arange(len(self.layers)) + 0.1)
        for left, top in zip(lefts, self._y(values), strict=True):
            if np.isfinite(top):
                self.sheet.fill(float(left), self.bottom, 0.8 * step, float(top) - self.bottom, STYLES[style][0])

    def key(self, names: Sequence[tuple[int, str]], left: float, room: float, points: float) -> None:
        """The styles and names of the lines, in order, beside the panel."""
        for row, (style, name) in enumerate(names):
            y = self.bottom + self.height - 0.1 - 0.24 * row
            colour, dash = STYLES[style]
            self.sheet.path(np.array([left, left + 0.4]), np.array([y, y]), colour, dash)
            self.sheet.text(left + 0.5, y, self.sheet.fonts.fit(name, room - 0.5, points), points)

    def _x(self) -> Array:
        return _centres(self.left, self.width, len(self.layers))

    def _y(self, values: Array) -> Array:
        return self.bottom + np.clip(self.axis.place(values), 0, 1) * self.height


def draw_layers(sheet: Sheet, left: float, bottom: float, width: float, layers: Sequence[int]) -> None:
    """Numbers of layers and the word, in the room ``BELOW`` something; from the last layer down, as many as have room."""
    step = math.ceil(len(layers) / _MOST_NUMBERS)
    for at, (x, layer) in enumerate(zip(_centres(left, width, len(layers)), layers, strict=True)):
        if (len(layers) - 1 - at) % step == 0:
            sheet.text(float(x), bottom - 0.14, str(layer), align="center")
    sheet.text(left + width / 2, bottom - 0.36, "layer", align="center")


def _centres(left: float, width: float, count: int) -> Array:
    inset = width / count / 2
    return np.asarray(np.linspace(left + inset, left + width - inset, count), dtype=np.float64)
