"""The trajectory: how probable some tokens are at one position, layer by layer."""

from dataclasses import dataclass

import numpy as np

from raylens.storage.errors import UsageError
from raylens.storage.fonts import Fonts
from raylens.storage.labels import token_label
from raylens.storage.plots.canvas import CAPTION, LEAST_WIDTH, MARGIN, Array, Sheet, headed
from raylens.storage.plots.panel import ABOVE, BELOW, Axis, Panel, downward_axis, rank_axis, share_axis
from raylens.storage.plots.request import Request, coverage, prediction, read_to
from raylens.storage.plots.standing import standing
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary

STATS = ("prob", "logprob", "rank")
#: Tokens followed when none are named: the best of the last layer.
MOST = 5
#: Tokens that colours and dashes can still tell apart.
LIMIT = 8
_HEIGHT, _STEP, _LEAST_PLOT = 3.2, 0.22, 4.0  # of the plot and between layers; all lengths are inches
_LEFT, _RIGHT = 0.75, 2.2


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
    tokens = list(dict.fromkeys(_best(record, column)[:MOST] if request.tokens is None else request.tokens))
    if not 1 <= len(tokens) <= LIMIT:
        raise UsageError(f"{len(tokens)} tokens chosen: a trajectory picture shows 1 to {LIMIT}")
    chosen = request.chosen_layers(lens)
    rows = [row for row, _ in chosen]
    logprobs, ranks = zip(*(_followed(record, lens, token, column) for token in tokens), strict=True)
    found = np.array(ranks if stat == "rank" else logprobs)[:, rows]
    values = np.exp(found) if stat == "prob" else found
    gaps = f"; gaps in a line: its token is not in the top {lens.ids.shape[2]} there" if np.isnan(values).any() else ""
    return Trajectories(
        heading=request.heading(record),
        captions=request.captions(
            record,
            read_to(record, vocabulary, position),
            f"tap {tap}{gaps}",
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
    """[L] logprobs and [L] ranks of a token at a position."""
    logprobs, ranks = standing(record, lens, np.full(len(record.positions), token, dtype=np.uint32))
    return logprobs[:, column], ranks[:, column]


def _axis(stat: str, values: Array) -> Axis:
    """Fixed for probabilities; the others reach as far as the values do."""
    known = values[np.isfinite(values)]
    if stat == "prob":
        return share_axis("probability")
    if stat == "logprob":
        return downward_axis("logprob in nats", float(known.min(initial=-1.0)))
    return rank_axis("rank, log scale, 1 at the top", float(known.max(initial=2.0)))


def pages(record: Record, vocabulary: Vocabulary, request: Request) -> list[Trajectories]:
    """The trajectories of a record; in pages, one for each position."""
    return [trajectories(record, vocabulary, one) for one in request.each_position(record)]


def draw(picture: Trajectories, fonts: Fonts) -> Sheet:
    """Draw trajectories; layers are equally far apart whatever their number."""
    plot = max(_LEAST_PLOT, len(picture.layers) * _STEP)
    width = max(_LEFT + plot + _RIGHT, LEAST_WIDTH)
    sheet = headed(width, MARGIN + BELOW + _HEIGHT + ABOVE, picture.heading, picture.captions, fonts)
    panel = Panel(sheet, _LEFT, MARGIN + BELOW, plot, _HEIGHT, picture.layers, picture.axis)
    panel.frame()
    for number in range(len(picture.names)):
        panel.line(picture.values[number], number)
    left = _LEFT + plot + 0.15
    panel.key(list(enumerate(picture.names)), left, width - left - MARGIN, CAPTION)
    return sheet
