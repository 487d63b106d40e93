"""The grid: positions from left to right, layers from the bottom up, in each cell the token that the lens puts first."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raylens.storage.errors import UsageError
from raylens.storage.fonts import Fonts
from raylens.storage.labels import token_label
from raylens.storage.plots.canvas import CELL, LEAST_WIDTH, MARGIN, Array, Scale, Sheet, headed
from raylens.storage.plots.paging import MOST_ROWS, page_caption, parts
from raylens.storage.plots.request import Prediction, Request, columns_of, coverage, prediction
from raylens.storage.plots.scales import entropy_scale, exact_rank_scale, kl_scale, logprob_scale, prob_scale, rank_scale
from raylens.storage.plots.standing import known_everywhere, ranks, standing
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary

STATS = ("rank", "prob", "logprob", "entropy", "kl", "final_prob", "final_logprob")
#: Those of a token that may be chosen.
TOKEN_STATS = ("rank", "prob", "logprob")
#: Positions drawn when none are asked for, the last ones; and positions of a page.
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
    positions = request.chosen_positions(record, len(record.positions) if request.pages else MOST)
    columns = columns_of(record, positions)
    final = prediction(record)
    subject = _subject(record, vocabulary, request, stat, final)
    exact = subject.targets is not None and bool(known_everywhere(record, record.taps[tap], subject.targets)[columns].all())
    parts = [(f"layer {layer}", tap, row) for row, layer in request.chosen_layers(record.taps[tap])]
    embedding = record.taps.get("resid_pre")
    has_embedding = embedding is not None and 0 in embedding.layers and (stat != "kl" or "kl" in embedding.stats)
    if embedding is not None and has_embedding:
        parts = [("emb", "resid_pre", embedding.layers.index(0)), *(parts if tap != "resid_pre" else [])]
    taps = {name: (record.taps[name], _values(record, record.taps[name], stat, subject, exact)) for _, name, _ in parts}
    following = [record.token_ids[position + 1 : position + 2] for position in positions]
    k = record.taps[tap].ids.shape[2]
    values = np.array([taps[name][1][row, columns] for _, name, row in parts])
    unknown = subject.targets is not None and bool(np.isnan(values).any())
    grey = f"; grey: not in the stored top {k}" if unknown else ""
    return Grid(
        heading=request.heading(record),
        captions=request.captions(
            record,
            f"cells: top token of {tap}; below: the token read; above: the token that comes next, "
            f"with {_MARK} where layer {final.layer} ({final.tap}) predicts it{grey}",
            coverage(record, positions),
        ),
        scale=_scale(stat, k, subject, exact),
        rows=tuple(name for name, _, _ in parts),
        has_embedding=has_embedding,
        positions=positions,
        inputs=tuple(token_label(vocabulary, record.token_ids[position]) for position in positions),
        nexts=tuple(token_label(vocabulary, ids[0]) if ids else "" for ids in following),
        hits=tuple(ids == [int(final.ids[column])] for ids, column in zip(following, columns, strict=True)),
        texts=tuple(tuple(token_label(vocabulary, int(taps[name][0].ids[row, c, 0])) for c in columns) for _, name, row in parts),
        values=values,
    )


def pages(record: Record, vocabulary: Vocabulary, request: Request) -> list[Grid]:
    """The grid of a record; in pages, from the first positions on, and of each from the last layer down."""
    whole = grid(record, vocabulary, request)
    if not request.pages:
        return [whole]
    places = [
        (rows, columns) for columns in parts(len(whole.positions), MOST) for rows in reversed(parts(len(whole.rows), MOST_ROWS))
    ]
    return [_page(whole, rows, columns, number, len(places)) for number, (rows, columns) in enumerate(places, start=1)]


def _page(whole: Grid, rows: slice, columns: slice, number: int, count: int) -> Grid:
    names, positions = whole.rows[rows], whole.positions[columns]
    caption = page_caption(number, count, [f"position {position}" for position in positions], names)
    return replace(
        whole,
        captions=(*whole.captions, caption),
        rows=names,
        has_embedding=whole.has_embedding and rows.start == 0,
        positions=positions,
        inputs=whole.inputs[columns],
        nexts=whole.nexts[columns],
        hits=whole.hits[columns],
        texts=tuple(line[columns] for line in whole.texts[rows]),
        values=whole.values[rows, columns],
    )


def draw(picture: Grid, fonts: Fonts) -> Sheet:
    """Draw a grid, its cells all of one size whatever their number.

    Raises:
        UsageError: more columns than a picture can have.
    """
    rows, columns = picture.values.shape
    width = max(_LEFT + columns * _WIDTH + MARGIN, LEAST_WIDTH)
    bottom = MARGIN + 2 * _ROW
    top = bottom + rows * _HEIGHT
    sheet = headed(width, top + _ROW, picture.heading, picture.captions, fonts, picture.scale)
    sheet.cells(_LEFT, bottom, (_WIDTH, _HEIGHT), picture.scale.paint(picture.values), picture.texts)
    if picture.has_embedding and rows > 1:
        sheet.lines([(_LEFT, bottom + _HEIGHT, _LEFT + columns * _WIDTH, bottom + _HEIGHT)], 1.2)
    names = [(bottom + (row + 0.5) * _HEIGHT, name) for row, name in enumerate(picture.rows)]
    names += [(top + _ROW / 2, "next token"), (bottom - _ROW / 2, "token"), (bottom - 1.5 * _ROW, "position")]
    for y, name in names:
        sheet.text(_LEFT - 0.08, y, name, align="right")
    for column in range(columns):
        _draw_column(sheet, picture, column, bottom, top)
    return sheet


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


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """Of what a stat is at each position: one token, or the best of each place.

    Attributes:
        name: in words.
        targets: [P] token ids; None stands for the best of each place.
    """

    name: str
    targets: NDArray[np.uint32] | None


def _subject(record: Record, vocabulary: Vocabulary, request: Request, stat: str, final: Prediction) -> _Subject:
    """The token asked for, or the final prediction, or the best of each place.

    Raises:
        UsageError: several tokens, or a stat that is not of a token.
    """
    if request.tokens is not None:
        if stat not in TOKEN_STATS:
            raise UsageError(f"--token: {stat} does not depend on a token; use rank, prob or logprob")
        if len(request.tokens) != 1:
            raise UsageError(f"--token: a grid is coloured by one token, not {len(request.tokens)}; name it by id:N")
        token = request.tokens[0]
        targets = np.full(len(record.positions), token, dtype=np.uint32)
        return _Subject(token_label(vocabulary, token), targets)
    if stat == "rank" or stat.startswith("final_"):
        return _Subject(f"the token that layer {final.layer} predicts", final.ids)
    return _Subject("the top token", None)


def _values(record: Record, lens: TapLens, stat: str, subject: _Subject, exact: bool) -> Array:
    """[L, P] of a stat; ranks that are not known are k + 1, or on a scale of exact ones no number."""
    if stat in ("entropy", "kl"):
        return (lens.entropy if stat == "entropy" else lens.stats["kl"]).astype(np.float64)
    if subject.targets is None:
        logprobs = lens.logprobs[:, :, 0].astype(np.float64)
    elif stat == "rank":
        return standing(record, lens, subject.targets)[1] if exact else ranks(record, lens, subject.targets)
    else:
        logprobs, _ = standing(record, lens, subject.targets)
    return logprobs if stat.endswith("logprob") else np.exp(logprobs)


def _scale(stat: str, k: int, subject: _Subject, exact: bool) -> Scale:
    if stat == "entropy":
        return entropy_scale("entropy in nats, scale ends at 12")
    if stat == "kl":
        return kl_scale("KL to the final prediction in nats, log scale")
    if stat == "rank":
        label = f"rank of {subject.name}, log scale"
        return exact_rank_scale(label) if exact else rank_scale(label, k)
    if stat.endswith("logprob"):
        return logprob_scale(f"logprob of {subject.name} in nats, scale ends at -8")
    return prob_scale(f"probability of {subject.name}")
