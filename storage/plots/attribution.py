"""The attribution picture: one position, a row for each layer, a column for each write, what each adds to a token's logit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raylens.storage.errors import NotDrawn, UsageError
from raylens.storage.fonts import Fonts
from raylens.storage.labels import token_label
from raylens.storage.plots.canvas import LEAST_WIDTH, MARGIN, Array, Scale, Sheet, headed
from raylens.storage.plots.request import Request, coverage, prediction, read_to
from raylens.storage.plots.scales import logit_scale
from raylens.storage.plots.standing import models_own
from raylens.storage.record import Record
from raylens.storage.taps import is_head, tap_order
from raylens.storage.vocabulary import Vocabulary

STATS = ("best", "next")
_WRITES = ("resid_pre", "attn_out", "mlp_out")
_WIDTH, _HEIGHT = 0.62, 0.2  # of a cell; all lengths are inches
_LEFT, _NAMES = 0.75, 0.25


@dataclass(frozen=True, slots=True, eq=False)
class AttributionPicture:
    """What an attribution picture shows. L layers from the bottom up, C columns.

    Attributes:
        heading, captions: text above it.
        scale: what the colours mean.
        layers: [L].
        taps: [C] whose writes they are.
        values: [L, C] terms of the logit; not a number where a tap has not got the layer.
    """

    heading: str
    captions: tuple[str, ...]
    scale: Scale
    layers: tuple[int, ...]
    taps: tuple[str, ...]
    values: Array


def attribution(record: Record, vocabulary: Vocabulary, request: Request) -> AttributionPicture:
    """Choose and compute what the picture of a record shows.

    Raises:
        UsageError: a token whose attribution was not stored, or a stat, tap or position that cannot be shown.
    """
    position = request.chosen_position(record, "the attribution picture")
    column = record.positions.index(position)
    words, terms = _terms(record, vocabulary, request, column)
    taps = _chosen_taps(record, request)
    chosen = {tap: {layer: row for row, layer in request.chosen_layers(record.taps[tap])} for tap in taps}
    layers = tuple(sorted({layer for rows in chosen.values() for layer in rows}))
    values = np.array(
        [[terms[tap][rows[layer]] if layer in rows else np.nan for tap, rows in chosen.items()] for layer in layers]
    )
    grey = "; grey: not lensed at that layer" if np.isnan(values).any() else ""
    return AttributionPicture(
        heading=request.heading(record),
        captions=request.captions(
            record,
            read_to(record, vocabulary, position),
            f"added to the logit of {words} by each write, the final norm's factor held fixed"
            f"{_check(record, column, taps, len(request.tokens or (0,)))}",
            coverage(record, [position]),
            f"rows: layer, 0 at the bottom; columns: what is written to the residual{grey}",
        ),
        scale=logit_scale("logit, scale ends at 4 on either side"),
        layers=layers,
        taps=taps,
        values=values,
    )


def _check(record: Record, column: int, taps: Sequence[str], tokens: int) -> str:
    """How far the terms sum to that of the residual they were written to, in words, and which have no column; at the model's
    last layer that is its own logit.

    Args:
        tokens: whose terms are added or taken off.
    """
    lens = record.taps.get("resid_post")
    if lens is None or "attribution_error" not in lens.stats:
        return ""
    error = lens.stats["attribution_error"][-1, column] * tokens  # at most: stored is the largest of all tokens
    hidden = ", ".join(tap for tap in _WRITES if tap not in taps)
    beside = f" (not shown: {hidden})" if hidden else ""
    last = lens.layers[-1]
    return f"; all that was written up to layer {last}{beside} sums to what the residual there adds, within {error:.1g}"


def _chosen_taps(record: Record, request: Request) -> tuple[str, ...]:
    """The tap asked for; else what writes to the residual, or where nothing of that was lensed, the residual itself."""
    if request.tap is not None:
        return (request.chosen_tap(record),)
    present = sorted(record.taps, key=tap_order)
    return tuple(tap for tap in present if tap in _WRITES or is_head(tap)) or tuple(present)


def _terms(record: Record, vocabulary: Vocabulary, request: Request, column: int) -> tuple[str, dict[str, Array]]:
    """To whose logit, in words; and tap -> [L] terms at a position."""
    if request.tokens is not None:
        if request.stat is not None:
            raise UsageError(f"stat {request.stat!r}: does not go with tokens of one's own, whose attribution is drawn")
        return _of_tracked(record, vocabulary, request.tokens, column)
    stat = request.chosen_stat(STATS)
    name = f"{stat}_attribution"
    if any(name not in lens.stats for lens in record.taps.values()):
        raise UsageError(f"prompt {record.id!r} has no {name}; name a tracked token, or lens it with --stats {name}")
    if stat == "best":
        predicted = token_label(vocabulary, int(prediction(record).ids[column]))
        known = models_own(record)[column]
        words = f"the predicted token {predicted}" if known else "the token that the model predicts, which is not stored"
    else:
        following = record.token_ids[record.positions[column] + 1 : record.positions[column] + 2]
        if not following:
            raise NotDrawn(f"no token follows position {record.positions[column]} of prompt {record.id!r}; choose another")
        words = f"the next token {token_label(vocabulary, following[0])}"
    return words, {tap: lens.stats[name][:, column] for tap, lens in record.taps.items()}


def _of_tracked(record: Record, vocabulary: Vocabulary, tokens: Sequence[int], column: int) -> tuple[str, dict[str, Array]]:
    labels = [token_label(vocabulary, token) for token in tokens]
    if not 1 <= len(tokens) <= 2:
        raise UsageError(f"{len(tokens)} tokens chosen: an attribution picture shows one, or one less another")
    for token, label in zip(tokens, labels, strict=True):
        if token not in record.tracked or any("attribution" not in lens.stats for lens in record.taps.values()):
            raise NotDrawn(f"token {label} (id:{token}) was not tracked with --stats attribution in prompt {record.id!r}")
    places = [record.tracked.index(token) for token in tokens]
    terms = {}
    for tap, lens in record.taps.items():
        found = lens.stats["attribution"][:, column]
        terms[tap] = found[:, places[0]] - (found[:, places[1]] if len(places) > 1 else 0)
    return " less that of ".join(labels), terms


def pages(record: Record, vocabulary: Vocabulary, request: Request) -> list[AttributionPicture]:
    """The attribution picture of a record; in pages, one for each position."""
    return [attribution(record, vocabulary, one) for one in request.each_position(record)]


def draw(picture: AttributionPicture, fonts: Fonts) -> Sheet:
    """Draw an attribution picture, its cells all of one size whatever their number.

    Raises:
        UsageError: more rows or columns than a picture can have.
    """
    rows, columns = picture.values.shape
    width = max(_LEFT + columns * _WIDTH + MARGIN, LEAST_WIDTH)
    bottom = MARGIN + _NAMES
    sheet = headed(width, bottom + rows * _HEIGHT + _NAMES, picture.heading, picture.captions, fonts, picture.scale)
    texts = [[f"{value:+z.2f}" if np.isfinite(value) else "" for value in row] for row in picture.values]
    sheet.cells(_LEFT, bottom, (_WIDTH, _HEIGHT), picture.scale.paint(picture.values), texts)
    for y in (bottom - _NAMES / 2, bottom + rows * _HEIGHT + _NAMES / 2):
        sheet.text(_LEFT - 0.08, y, "layer", align="right")
        for at, tap in enumerate(picture.taps):
            sheet.text(_LEFT + (at + 0.5) * _WIDTH, y, tap, align="center")
    for at, layer in enumerate(picture.layers):
        sheet.text(_LEFT - 0.08, bottom + (at + 0.5) * _HEIGHT, str(layer), align="right")
    return sheet
