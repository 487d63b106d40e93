"""The grid: positions from left to right, layers from the bottom up, in each cell the token that the lens puts first."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from raylens.storage.errors import UsageError
from raylens.storage.fonts import Fonts
from raylens.storage.labels import token_label
from raylens.storage.plots.canvas import CELL, LEAST_WIDTH, MARGIN, Array, Scale, Sheet, header
from raylens.storage.plots.request import Prediction, Request, coverage, prediction, ranks
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary

STATS = ("rank", "prob", "logprob", "entropy", "kl")
#: Positions drawn when none are asked for: the last ones.
MOST = 24
_WIDTH, _HEIGHT = 0.84, 0.24  # of a cell; all lengths are inches
_LEFT = 0.85
_ROW = 0.2  # of the text rows above and below the cells
_GREY = "#595959"
_MARK = "✓"


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What a grid shows. R rows, from the bottom up; C columns.

    Attributes:
        heading, captions: text above it.
        scale: what the colours mean.
        rows: [R] names of the layers.
        has_embedding: whether the first row is the embedding, which no layer has touched.
        positions: [C].
        inputs: [C] labels of the tokens read.
        nexts: [C] labels of the tokens that come next in the prompt, empty after the last.
        hits: [C] whether the last layer predicts that token.
        texts: [R][C] labels of the top-1 tokens.
        values: [R, C] what the colours show, in the scale's unit.
    """

    heading: str
    captions: tuple[str, ...]
    scale: Scale
    rows: tuple[str, ...]
    has_embedding: bool
    positions: tuple[int, ...]
    inputs: tuple[str, ...]
    nexts: tuple[str, ...]
    hits: tuple[bool, ...]
    texts: tuple[tuple[str, ...], ...]
    values: Array


def grid(record: Record, vocabulary: Vocabulary, request: Request) -> Grid:
    """Choose and compute what the grid of a record shows.

    Raises:
        UsageError: a stat, tap or position that cannot be shown.
    """
    stat, tap = request.chosen_stat(STATS), request.chosen_tap(record)
    if stat == "kl" and "kl" not in record.taps[tap].stats:
        raise UsageError(f"stat 'kl': prompt {record.id!r} has no kl; run it with --stats kl")
    positions = request.chosen_positions(record, MOST)
    columns = [record.positions.index(position) for position in positions]
    final = prediction(record)
    parts = [(f"layer {layer}", tap, row) for row, layer in request.chosen_layers(record.taps[tap])]
    embedding = record.taps.get("resid_pre")
    has_embedding = embedding is not None and 0 in embedding.layers
    if embedding is not None and has_embedding:
        parts = [("emb", "resid_pre", embedding.layers.index(0)), *(parts if tap != "resid_pre" else [])]
    taps = {name: (record.taps[name], _values(record.taps[name], stat, final)) for _, name, _ in parts}
    following = [record.token_ids[position + 1 : position + 2] for position in positions]
    return Grid(
        heading=request.heading(record),
        captions=request.captions(
            record,
            f"cells: top-1 token of {tap}; below: the token read; above: the token that comes next, "
            f"with {_MARK} where layer {final.layer} ({final.tap}) predicts it",
            coverage(record, positions),
        ),
        scale=scale_of(stat, record.taps[tap].ids.shape[2], final),
        rows=tuple(name for name, _, _ in parts),
        has_embedding=has_embedding,
        positions=positions,
        inputs=tuple(token_label(vocabulary, record.token_ids[position]) for position in positions),
        nexts=tuple(token_label(vocabulary, ids[0]) if ids else "" for ids in following),
        hits=tuple(ids == [int(final.ids[column])] for ids, column in zip(following, columns, strict=True)),
        texts=tuple(tuple(token_label(vocabulary, int(taps[name][0].ids[row, c, 0])) for c in columns) for _, name, row in parts),
        values=np.array([taps[name][1][row, columns] for _, name, row in parts]),
    )


def figure(record: Record, vocabulary: Vocabulary, request: Request, fonts: Fonts) -> Figure:
    """The grid of a record, drawn."""
    return draw(grid(record, vocabulary, request), fonts)


def draw(picture: Grid, fonts: Fonts) -> Figure:
    """Draw a grid, its cells all of one size whatever their number.

    Raises:
        UsageError: more columns than a picture can have.
    """
    rows, columns = picture.values.shape
    width = max(_LEFT + columns * _WIDTH + MARGIN, LEAST_WIDTH)
    head = header(picture.heading, picture.captions, width - 2 * MARGIN, fonts)
    bottom = MARGIN + 2 * _ROW
    top = bottom + rows * _HEIGHT
    sheet = Sheet(width, top + _ROW + head.height, fonts)
    head.draw(sheet, MARGIN, picture.scale)
    sheet.cells(_LEFT, bottom, (_WIDTH, _HEIGHT), picture.scale.paint(picture.values), picture.texts)
    if picture.has_embedding and rows > 1:
        sheet.lines([(_LEFT, bottom + _HEIGHT, _LEFT + columns * _WIDTH, bottom + _HEIGHT)], 1.2)
    names = [(bottom + (row + 0.5) * _HEIGHT, name) for row, name in enumerate(picture.rows)]
    names += [(top + _ROW / 2, "next token"), (bottom - _ROW / 2, "token"), (bottom - 1.5 * _ROW, "position")]
    for y, name in names:
        sheet.text(_LEFT - 0.08, y, name, align="right")
    for column in range(columns):
        _draw_column(sheet, picture, column, bottom, top)
    return sheet.figure


def _draw_column(sheet: Sheet, picture: Grid, column: int, bottom: float, top: float) -> None:
    x = _LEFT + (column + 0.5) * _WIDTH
    room = _WIDTH - 0.06
    # The mark is a text of its own: joined to a token in Arabic or Hebrew it would land before it.
    mark = sheet.fonts.width(_MARK, CELL) + 0.03 if picture.hits[column] else 0.0
    following = sheet.fonts.fit(picture.nexts[column], room - mark, CELL)
    half = (sheet.fonts.width(following, CELL) + mark) / 2
    sheet.text(x - mark / 2, top + _ROW / 2, following, align="center")
    if picture.hits[column]:
        sheet.text(x + half, top + _ROW / 2, _MARK, align="right")
    sheet.text(x, bottom - _ROW / 2, sheet.fonts.fit(picture.inputs[column], room, CELL), align="center")
    sheet.text(x, bottom - 1.5 * _ROW, str(picture.positions[column]), align="center", colour=_GREY)


def _values(lens: TapLens, stat: str, final: Prediction) -> Array:
    """[L, P] of a stat."""
    if stat == "prob":
        return np.exp(lens.logprobs[:, :, 0].astype(np.float64))
    if stat == "logprob":
        return lens.logprobs[:, :, 0].astype(np.float64)
    if stat == "kl":
        return lens.stats["kl"].astype(np.float64)
    return (lens.entropy if stat == "entropy" else ranks(lens, final.ids)).astype(np.float64)


def scale_of(stat: str, k: int, final: Prediction) -> Scale:
    """How a stat becomes colours, in this picture and in pages."""
    if stat == "prob":
        return Scale("probability of the top-1 token", 0, 1, "viridis", tuple((v / 4, f"{v / 4:g}") for v in range(5)))
    if stat == "logprob":
        return Scale(
            "logprob of the top-1 token in nats, -8 and less alike", -8, 0, "viridis", tuple((v, f"{v}") for v in range(-8, 1, 2))
        )
    if stat == "kl":
        return Scale(
            "KL of the final prediction from here in nats, 12 and more alike",
            0,
            12,
            "cividis_r",
            tuple((v, f"{v}") for v in range(0, 13, 3)),
        )
    if stat == "entropy":
        # Twelve nats are those of 160,000 equally likely tokens; a scale by vocabulary size would not compare across models.
        return Scale("entropy in nats, 12 and more alike", 0, 12, "cividis_r", tuple((v, f"{v}") for v in range(0, 13, 3)))
    marked = [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500) if 1.4 * v <= k + 1]  # further right they would touch the last
    ticks = (*((v, f"{v}") for v in marked), (k + 1, f">{k}"))
    return Scale(f"rank of the token that layer {final.layer} predicts, log scale", 1, k + 1, "viridis_r", ticks, log=True)
