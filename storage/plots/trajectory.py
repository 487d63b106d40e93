"""The trajectory: how probable some tokens are at one position, layer by layer."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from raylens.storage.errors import UsageError
from raylens.storage.fonts import Fonts
from raylens.storage.labels import token_label
from raylens.storage.plots.canvas import CAPTION, LEAST_WIDTH, MARGIN, Array, Sheet, header
from raylens.storage.plots.request import Request, coverage, prediction, prompt_to
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary

STATS = ("prob", "logprob", "rank")
#: Tokens followed when none are named: the best of the last layer.
MOST = 5
#: Tokens that colours and dashes can still tell apart.
LIMIT = 8
_HEIGHT, _STEP, _LEAST_PLOT = 3.2, 0.22, 4.0  # of the plot and between layers; all lengths are inches
_LEFT, _RIGHT = 0.75, 2.2
_BELOW = 0.5  # room for the layers' numbers and the name of the axis
_GREY, _PALE = "#595959", "#dddddd"
#: Okabe and Ito's colours that contrast with white, each with dashes of its own, so that neither is needed alone.
_STYLES = (
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


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """What a trajectory picture shows. L layers, M tokens.

    Attributes:
        heading, captions: text above it.
        layers: [L].
        names: [M] labels of the tokens.
        values: [M, L]; not a number where the record does not know it.
        axis: of the values.
    """

    heading: str
    captions: tuple[str, ...]
    layers: tuple[int, ...]
    names: tuple[str, ...]
    values: Array
    axis: Axis


def trajectories(record: Record, vocabulary: Vocabulary, request: Request) -> Trajectories:
    """Choose and compute what the picture of a record shows.

    Raises:
        UsageError: a stat, tap, position or token that cannot be shown, or more than one position.
    """
    stat, tap = request.chosen_stat(STATS), request.chosen_tap(record)
    position = request.chosen_position(record, "the trajectory picture")
    column = record.positions.index(position)
    lens = record.taps[tap]
    tokens = request.tokens if request.tokens is not None else [int(token) for token in _best(record, column)[:MOST]]
    if not 1 <= len(tokens) <= LIMIT:
        raise UsageError(f"{len(tokens)} tokens chosen: a trajectory picture shows 1 to {LIMIT}")
    chosen = request.chosen_layers(lens)
    rows = [row for row, _ in chosen]
    logprobs, ranks = zip(*(_followed(record, lens, token, column) for token in tokens), strict=True)
    found = np.array(ranks if stat == "rank" else logprobs)[:, rows]
    values = np.exp(found) if stat == "prob" else found
    k = lens.ids.shape[2]
    unknown = "" if all(token in record.tracked for token in tokens) else f"; no point where a token is not among the {k} best"
    return Trajectories(
        heading=request.heading(record),
        captions=request.captions(
            record,
            f"prompt: {prompt_to(record, vocabulary, position)}",
            f"tap {tap}{unknown}",
            coverage(record, [position]),
        ),
        layers=tuple(layer for _, layer in chosen),
        names=tuple(token_label(vocabulary, token) for token in tokens),
        values=values,
        axis=_axis(stat, values),
    )


def _best(record: Record, column: int) -> list[int]:
    """The tokens of the last layer, best first."""
    final = prediction(record)
    lens = record.taps[final.tap]
    best: list[int] = lens.ids[lens.layers.index(final.layer), column].tolist()
    return best


def _followed(record: Record, lens: TapLens, token: int, column: int) -> tuple[Array, Array]:
    """[L] logprobs and [L] ranks of a token: as tracked, else from the k best."""
    if token in record.tracked and "tracked_logprob" in lens.stats:
        number = record.tracked.index(token)
        exact = [lens.stats[name][:, column, number].astype(np.float64) for name in ("tracked_logprob", "tracked_rank")]
        return exact[0], exact[1]
    found = lens.ids[:, column] == token
    places = found.argmax(axis=1)
    logprobs = np.take_along_axis(lens.logprobs[:, column], places[:, None], axis=1)[:, 0].astype(np.float64)
    known = found.any(axis=1)
    return np.where(known, logprobs, np.nan), np.where(known, places + 1.0, np.nan)


def _axis(stat: str, values: Array) -> Axis:
    """Fixed for probabilities; the others reach as far as the values do, in steps that are easy to read."""
    known = values[np.isfinite(values)]
    if stat == "prob":
        return Axis("probability", 0.0, 1.0, tuple((v / 4, f"{v / 4:g}") for v in range(5)))
    if stat == "logprob":
        step = max(1, math.ceil(-float(known.min(initial=-1.0)) / 6))
        steps = max(1, math.ceil(-float(known.min(initial=-1.0)) / step))
        return Axis("logprob in nats", float(-step * steps), 0.0, tuple((-step * n, f"{-step * n}") for n in range(steps + 1)))
    powers = max(1, math.ceil(math.log10(float(known.max(initial=2.0)))))
    ranks = [factor * 10**power for power in range(powers) for factor in ((1, 2, 5) if powers < 3 else (1,))] + [10**powers]
    marks = tuple((-math.log10(rank), f"{rank:,}") for rank in ranks)
    return Axis("rank, log scale, 1 at the top", float(-powers), 0.0, marks, logarithmic=True)


def figure(record: Record, vocabulary: Vocabulary, request: Request, fonts: Fonts) -> Figure:
    """The trajectories of a record, drawn."""
    return draw(trajectories(record, vocabulary, request), fonts)


def draw(picture: Trajectories, fonts: Fonts) -> Figure:
    """Draw trajectories; layers are equally far apart whatever their number."""
    plot = max(_LEAST_PLOT, (len(picture.layers) - 1) * _STEP)
    width = max(_LEFT + plot + _RIGHT, LEAST_WIDTH)
    head = header(picture.heading, picture.captions, width - 2 * MARGIN, fonts)
    bottom = MARGIN + _BELOW
    sheet = Sheet(width, bottom + _HEIGHT + head.height, fonts)
    head.draw(sheet, MARGIN)
    _draw_axes(sheet, picture, bottom, plot)
    x = _LEFT + np.linspace(0, plot, len(picture.layers)) if len(picture.layers) > 1 else np.array([_LEFT + plot / 2])
    y = bottom + picture.axis.place(picture.values) * _HEIGHT
    for number, name in enumerate(picture.names):
        colour, dash = _STYLES[number]
        sheet.path(x, y[number], colour, dash)
        key = bottom + _HEIGHT - 0.1 - 0.24 * number
        sheet.path(np.array([0.15, 0.55]) + _LEFT + plot, np.array([key, key]), colour, dash)
        sheet.text(_LEFT + plot + 0.65, key, fonts.fit(name, width - _LEFT - plot - 0.65 - MARGIN, CAPTION), CAPTION)
    return sheet.figure


def _draw_axes(sheet: Sheet, picture: Trajectories, bottom: float, plot: float) -> None:
    axis = picture.axis
    for value, text in axis.ticks:
        y = bottom + (value - axis.low) / (axis.high - axis.low) * _HEIGHT
        sheet.lines([(_LEFT, y, _LEFT + plot, y)], 0.6, _PALE)
        sheet.text(_LEFT - 0.08, y, text, align="right")
    count = len(picture.layers)
    for place, layer in enumerate(picture.layers):
        if (count - 1 - place) % math.ceil(count / 40) == 0:
            x = _LEFT + plot * (place / (count - 1) if count > 1 else 0.5)
            sheet.text(x, bottom - 0.14, str(layer), align="center")
    sheet.text(_LEFT + plot / 2, bottom - 0.36, "layer", align="center")
    sheet.text(_LEFT, bottom + _HEIGHT + 0.12, axis.label, colour=_GREY)
