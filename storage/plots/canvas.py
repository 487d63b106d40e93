"""What all pictures share: a sheet measured in inches, coloured cells with text in them, colour scales, reproducible files."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from raylens.storage import labels
from raylens.storage.errors import NotDrawn
from raylens.storage.fonts import Fonts

DPI = 150
#: Agg cannot draw a picture of 2**16 pixels on a side; long before that no viewer opens it.
MAX_PIXELS = 40_000
HEADING, CAPTION, CELL = 11.0, 8.5, 7.5  # points
MARGIN = 0.15  # inches
LEAST_WIDTH = 7.0  # of a picture with few columns, for its heading
_LINE = 1.4  # height of a line of text, in ems
_LINES, _START = 3, 24  # of a caption: lines at most, and characters that stay where the middle is cut
_NO_VALUE = "#d0d0d0"
#: Keeps a line that begins with Arabic or Hebrew from being laid out from the right as a whole. Draws nothing.
LEFT_TO_RIGHT = "\u200e"

Array = NDArray[np.float64]
#: A matplotlib line style: its sign, or an offset with lengths of strokes and gaps in points.
Dash = str | tuple[int, tuple[int, ...]]

_rc_lock = Lock()


@dataclass(frozen=True, slots=True)
class Scale:
    """How values become colours; fixed by the stat and not by the data, so that pictures compare.

    Attributes:
        label: what the values are, in words and with their unit.
        low, high: values at the ends of the scale; values beyond get the colour of the end.
        colours: a matplotlib colour map.
        ticks: values to mark, each with its text.
        log: whether equal steps are equal ratios.
    """

    label: str
    low: float
    high: float
    colours: str
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def paint(self, values: Array) -> Array:
        """[..., 4] RGBA of values of any shape; grey where a value is not a number."""
        norm = LogNorm(self.low, self.high) if self.log else Normalize(self.low, self.high)
        known = np.where(np.isnan(values), self.low, np.clip(values, self.low, self.high))
        rgba = np.asarray(matplotlib.colormaps[self.colours](norm(known)), dtype=np.float64)
        rgba[np.isnan(values)] = matplotlib.colors.to_rgba(_NO_VALUE)
        return rgba

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _directed(text: str) -> str:
    """Text with marks of direction where it needs them: signs and digits of an escape would go with the Arabic beside them."""
    if text.isascii() or not any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        return text.removeprefix(LEFT_TO_RIGHT)
    return labels.ESCAPE.sub(rf"{LEFT_TO_RIGHT}\g<0>{LEFT_TO_RIGHT}", text)


def ink(rgba: Array) -> str:
    """Black or white, whichever contrasts more with a colour (relative luminance of WCAG)."""
    linear = np.where(rgba[:3] <= 0.04045, rgba[:3] / 12.92, ((rgba[:3] + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be drawn.

    Attributes:
        x, y: place on its baseline, in inches.
        text: drawable.
        points: size.
        align: which part of it is at the place: left, center or right.
        colour: of the letters.
    """

    x: float
    y: float
    text: str
    points: float
    align: str
    colour: str


class Sheet:
    """A white page. Places are inches from its lower left corner.

    Attributes:
        figure, axes: what is on it, but for texts.
        texts: drawn last, in the way that suits the kind of file.
    """

    def __init__(self, width: float, height: float, fonts: Fonts) -> None:
        """Args: width, height: in inches.

        Raises:
            NotDrawn: the picture would be too large.
        """
        if max(width, height) * DPI > MAX_PIXELS:
            size = f"{width * DPI:.0f} x {height * DPI:.0f}"
            raise NotDrawn(f"picture of {size} pixels is too large (limit {MAX_PIXELS}); choose fewer positions, or --pages")
        self.width, self.height, self.fonts = width, height, fonts
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()
        self.axes.set_autoscale_on(False)
        self.texts: list[Text] = []

    def text(self, x: float, y: float, text: str, points: float = CELL, align: str = "left", colour: str = "black") -> None:
        """Write drawable text with its middle line at y."""
        # A shared baseline, unlike centring each text on its own ink, keeps a row of tokens level.
        self.texts.append(Text(x, y - 0.36 * points / 72, _directed(text), points, align, colour))

    def cells(
        self, left: float, bottom: float, size: tuple[float, float], colours: Array, texts: Sequence[Sequence[str]]
    ) -> None:
        """A grid of coloured cells with a text in each, first row at the bottom.

        Args:
            size: width and height of a cell.
            colours: [R, C, 4] RGBA.
            texts: [R][C] labels; each is cut to its cell.
        """
        rows, columns = colours.shape[:2]
        self.mesh(left, bottom, size, colours, edge=0.5)
        for row in range(rows):
            for column in range(columns):
                text = self.fonts.fit(texts[row][column], size[0] - 0.06, CELL)
                x, y = left + (column + 0.5) * size[0], bottom + (row + 0.5) * size[1]
                self.text(x, y, text, align="center", colour=ink(colours[row, column]))

    def lines(self, segments: Sequence[tuple[float, float, float, float]], points: float, colour: str = "black") -> None:
        """Straight lines, each from x0, y0 to x1, y1."""
        ends = [((x0, y0), (x1, y1)) for x0, y0, x1, y1 in segments]
        self.axes.add_collection(LineCollection(ends, linewidths=points, colors=colour, capstyle="butt"))

    def path(self, x: Array, y: Array, colour: str, dash: Dash) -> None:
        """A line through [N] places, with a dot at each that is a number; it breaks where one is not."""
        self.axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=2.5)

    def band(self, x: Array, low: Array, high: Array, colour: str) -> None:
        """The area between two lines through [N] places, pale enough for a line to be seen on it."""
        self.axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)

    def fill(self, left: float, bottom: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle."""
        self.axes.add_patch(Rectangle((left, bottom), width, height, facecolor=colour, linewidth=0))

    def frame(self, left: float, bottom: float, width: float, height: float) -> None:
        """An unfilled rectangle, black with a white line on it: seen on every colour, by eyes that see none too."""
        for points, colour in ((1.9, "black"), (0.9, "white")):
            self.axes.add_patch(
                Rectangle((left, bottom), width, height, fill=False, edgecolor=colour, linewidth=points, zorder=3)
            )

    def key(self, left: float, bottom: float, scale: Scale) -> None:
        """The colour scale as a bar with marked values below it and its label to the right. See ``KEY_HEIGHT``."""
        width, height, steps = 2.6, 0.12, 128
        edges = np.linspace(0, 1, steps)
        values = scale.low * (scale.high / scale.low) ** edges if scale.log else scale.low + (scale.high - scale.low) * edges
        base = bottom + KEY_HEIGHT - height
        self.mesh(left, base, (width / steps, height), scale.paint(values)[None], edge=0)
        for value, text in scale.ticks:
            x = left + width * scale.place(value)
            self.lines([(x, base - 0.03, x, base)], 0.8)
            self.text(x, base - 0.11, text, align="center")
        beside = left + width + 0.15
        for line, text in enumerate(self.fonts.wrap(scale.label, self.width - beside - MARGIN, CAPTION, 2)):
            self.text(beside, base + height / 2 - line * CAPTION * _LINE / 72, LEFT_TO_RIGHT + text, CAPTION)

    def mesh(self, left: float, bottom: float, size: tuple[float, float], colours: Array, edge: float) -> None:
        """Coloured cells without text, first row at the bottom; as ``cells``, with white edges of so many points."""
        rows, columns = colours.shape[:2]
        x = left + size[0] * np.arange(columns + 1)
        y = bottom + size[1] * np.arange(rows + 1)
        self.axes.pcolormesh(x, y, colours, edgecolors="white" if edge else "face", linewidth=edge or 0.1)


KEY_HEIGHT = 0.32  # inches, of a key with its marked values


def headed(width: float, height: float, heading: str, captions: Sequence[str], fonts: Fonts, scale: Scale | None = None) -> Sheet:
    """A sheet with a heading and captions, plain text of any content, and a key of the colours where they mean something.

    Args:
        width, height: of the sheet, and of what is below the header; in inches.

    Raises:
        NotDrawn: as ``Sheet``.
    """
    room = width - 2 * MARGIN
    lines = [(line, HEADING) for line in fonts.wrap(labels.text_label(heading), room, HEADING, 2)]
    for caption in captions:
        lines += [(line, CAPTION) for line in _caption_lines(caption, room, fonts)]
    above = sum(points for _, points in lines) * _LINE / 72
    sheet = Sheet(width, height + (MARGIN + above + (0.08 + KEY_HEIGHT if scale is not None else 0.0) + 0.18), fonts)
    y = sheet.height - MARGIN
    for text, points in lines:
        step = points * _LINE / 72
        sheet.text(MARGIN, y - step / 2, LEFT_TO_RIGHT + text, points)
        y -= step
    if scale is not None:
        sheet.key(MARGIN, y - 0.08 - KEY_HEIGHT, scale)
    return sheet


def _caption_lines(caption: str, width: float, fonts: Fonts) -> list[str]:
    """At most ``_LINES`` lines; what is longer loses its middle: of a prompt the end is what counts."""
    lines = fonts.wrap(caption, width, CAPTION, len(caption) + 1)
    parts = labels.pieces(fonts.drawable(caption))
    start, end = parts[:_START], parts[_START:]
    while len(lines) > _LINES:
        end = end[len(end) // 8 + 1 :]
        lines = fonts.wrap("".join([*start, "…", *end]), width, CAPTION, len(caption) + 1)
    return lines


@contextmanager
def settled(fonts: Fonts) -> Iterator[None]:
    """Settings under which figures must be both built and encoded: ours alone, whatever the user's matplotlibrc says."""
    # Matplotlib's settings are global and some are read only while saving, so pictures are drawn one at a time.
    with _rc_lock, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "text.parse_math": False,
                # Names for viewers of an SVG that lack DejaVu Sans; Verdana has nearly the same widths.
                "font.sans-serif": [*fonts.families, "Verdana", "Arial"],
                "svg.hashsalt": "raylens",
                "svg.fonttype": "none",  # text that can be searched, copied and read aloud
            }
        )
        yield
