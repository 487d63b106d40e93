"""The rank picture of LogitLens4LLMs: one position, a row for each layer and tap, the k best tokens from left to right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from raylens.storage.errors import NotDrawn
from raylens.storage.fonts import Fonts
from raylens.storage.labels import token_label
from raylens.storage.plots.canvas import LEAST_WIDTH, MARGIN, Array, Scale, Sheet, headed
from raylens.storage.plots.important import important_layers
from raylens.storage.plots.paging import MOST_ROWS, page_caption, parts
from raylens.storage.plots.request import Request, coverage, prediction, read_to, taps_of
from raylens.storage.plots.scales import prob_scale
from raylens.storage.record import Record
from raylens.storage.vocabulary import Vocabulary

STATS = ("prob",)
#: Ranks drawn of a record that has more.
MOST_RANKS = 20
_WIDTH, _HEIGHT = 0.9, 0.2  # of a cell; all lengths are inches
_LEFT = 1.45
_INSET = 0.012  # of a frame in its cell, so little that an underscore stays apart from it
_ROW = 0.2  # of the ranks below and above the cells


@dataclass(frozen=True, slots=True, eq=False)
class RankPicture:
    """What a rank picture shows. R rows, from the bottom up: layer by layer, taps in the order in which a block computes them.

    Attributes:
        heading, captions: text above it.
        scale: what the colours mean.
        rows: [R] layer and tap.
        breaks: number of rows below each line between two layers, so the line lies between rows and cuts none.
        texts: [R][k] labels of the tokens, best first; empty where a tap has fewer.
        values: [R, k] their probabilities; not a number where a tap has fewer.
        found: [R, k] whether it is the predicted token.
    """

    heading: str
    captions: tuple[str, ...]
    scale: Scale
    rows: tuple[tuple[int, str], ...]
    breaks: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]
    values: Array
    found: np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def rank(record: Record, vocabulary: Vocabulary, request: Request) -> RankPicture:
    """Choose and compute what the rank picture of a record shows.

    Raises:
        NotDrawn: a position or layer that the record lacks, where others may have it.
        UsageError: a stat or tap that cannot be shown, or more than one position.
    """
    request.chosen_stat(STATS)
    position = request.chosen_position(record, "the rank picture")
    column = record.positions.index(position)
    taps = taps_of(record) if request.tap is None else [request.chosen_tap(record)]
    # Sorting is stable, so within a layer taps keep block order.
    places = [(layer, tap, row) for tap in taps for row, layer in request.chosen_layers(record.taps[tap])]
    shown, rule = important_layers(record, request, column)
    places = [place for place in places if place[0] in shown]
    if not places:
        hiding = "--layer-step" if request.tap is None else "--tap or --layer-step"
        raise NotDrawn(f"none of the important layers is shown; leave {hiding} out")
    places.sort(key=lambda place: place[0])
    rows = tuple((layer, tap) for layer, tap, _ in places)
    most = max(record.taps[tap].ids.shape[2] for tap in taps)
    k = min(most, MOST_RANKS)
    ids = np.full((len(rows), k), -1, dtype=np.int64)
    values = np.full((len(rows), k), np.nan)
    for at, (_, tap, row) in enumerate(places):
        best = record.taps[tap].ids[row, column, :k]
        ids[at, : len(best)] = best
        values[at, : len(best)] = np.exp(record.taps[tap].logprobs[row, column, :k].astype(np.float64))
    target = int(prediction(record).ids[column])
    columns = f"rank 1 to {k}" + (f" of {most}" if most > k else "")
    lines = _captions(record, vocabulary, position, columns)
    if rule:
        lines += (f"{len({layer for layer, _ in rows})} of {len(record.layers)} layers: {rule}",)
    return RankPicture(
        heading=request.heading(record),
        captions=request.captions(record, *lines),
        scale=prob_scale("probability"),
        rows=rows,
        breaks=_breaks(rows),
        texts=tuple(tuple(token_label(vocabulary, int(i)) if i >= 0 else "" for i in line) for line in ids),
        values=values,
        found=ids == target,
    )


def _captions(record: Record, vocabulary: Vocabulary, position: int, columns: str) -> tuple[str, ...]:
    final = prediction(record)
    column = record.positions.index(position)
    token = token_label(vocabulary, int(final.ids[column]))
    predicted = f"predicted next: {token} (probability {final.probs[column]:.3g}, layer {final.layer}, {final.tap})"
    following = record.token_ids[position + 1 : position + 2]
    source = "actual" if record.generated is None else "generated"
    actual = f"; {source} next: {token_label(vocabulary, following[0])}" if following else ""
    axes = f"rows: layer and tap, layer 0 at the bottom; columns: {columns}; framed: the predicted token"
    return (
        read_to(record, vocabulary, position),
        predicted + actual,
        coverage(record, [position]),
        axes,
    )


def pages(record: Record, vocabulary: Vocabulary, request: Request) -> list[RankPicture]:
    """The rank picture of a record; in pages, position by position, and of each from the last layer down."""
    pictures = [rank(record, vocabulary, one) for one in request.each_position(record)]
    if not request.pages:
        return pictures
    places = [(whole, rows) for whole in pictures for rows in reversed(_whole_layers(whole))]
    return [_page(whole, rows, number, len(places)) for number, (whole, rows) in enumerate(places, start=1)]


def _whole_layers(picture: RankPicture) -> list[slice]:
    """The rows of each page, no layer of which is torn."""
    edges = (0, *picture.breaks, len(picture.rows))
    tallest = max(last - first for first, last in pairwise(edges))
    return [slice(edges[part.start], edges[part.stop]) for part in parts(len(edges) - 1, max(1, MOST_ROWS // tallest))]


def _page(whole: RankPicture, rows: slice, number: int, count: int) -> RankPicture:
    layers = [f"layer {layer}" for layer in dict.fromkeys(layer for layer, _ in whole.rows[rows])]
    return replace(
        whole,
        captions=(*whole.captions, page_caption(number, count, layers)),
        rows=whole.rows[rows],
        breaks=_breaks(whole.rows[rows]),
        texts=whole.texts[rows],
        values=whole.values[rows],
        found=whole.found[rows],
    )


def _breaks(rows: Sequence[tuple[int, str]]) -> tuple[int, ...]:
    return tuple(at for at in range(1, len(rows)) if rows[at][0] != rows[at - 1][0])


def draw(picture: RankPicture, fonts: Fonts) -> Sheet:
    """Draw a rank picture, its cells all of one size whatever their number.

    Raises:
        UsageError: more rows than a picture can have.
    """
    rows, columns = picture.values.shape
    width = max(_LEFT + columns * _WIDTH + MARGIN, LEAST_WIDTH)
    bottom = MARGIN + _ROW
    sheet = headed(width, bottom + rows * _HEIGHT + _ROW, picture.heading, picture.captions, fonts, picture.scale)
    sheet.cells(_LEFT, bottom, (_WIDTH, _HEIGHT), picture.scale.paint(picture.values), picture.texts)
    for row, column in np.argwhere(picture.found):
        corner = (_LEFT + column * _WIDTH + _INSET, bottom + row * _HEIGHT + _INSET)
        sheet.frame(*corner, _WIDTH - 2 * _INSET, _HEIGHT - 2 * _INSET)
    ends = (MARGIN, _LEFT + columns * _WIDTH)
    sheet.lines([(ends[0], bottom + at * _HEIGHT, ends[1], bottom + at * _HEIGHT) for at in picture.breaks], 1.0)
    _draw_names(sheet, picture, bottom)
    return sheet


def _draw_names(sheet: Sheet, picture: RankPicture, bottom: float) -> None:
    edges = (0, *picture.breaks, len(picture.rows))
    for first, last in pairwise(edges):
        sheet.text(MARGIN + 0.2, bottom + (first + last) / 2 * _HEIGHT, str(picture.rows[first][0]), 9, align="center")
    for row, (_, tap) in enumerate(picture.rows):
        sheet.text(_LEFT - 0.08, bottom + (row + 0.5) * _HEIGHT, tap, align="right")
    for y in (bottom - _ROW / 2, bottom + len(picture.rows) * _HEIGHT + _ROW / 2):
        sheet.text(MARGIN + 0.2, y, "layer", align="center")
        sheet.text(_LEFT - 0.08, y, "rank", align="right")
        for column in range(picture.values.shape[1]):
            sheet.text(_LEFT + (column + 0.5) * _WIDTH, y, str(column + 1), align="center")
