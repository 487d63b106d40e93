"""Sheets as files: PNG, SVG and PDF, the same bytes each time."""

from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.patheffects import Normal
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from raylens.storage.labels import text_label
from raylens.storage.plots.canvas import DPI, LEFT_TO_RIGHT, Array, Sheet

#: How much of a text is to the left of its place.
_SHIFTS = {"left": 0.0, "center": 0.5, "right": 1.0}


def encode(sheets: Iterable[Sheet], suffix: str, title: str) -> list[bytes]:
    """A file of each sheet, or one PDF of all, without dates or random names in it. Call within ``settled``.

    Args:
        sheets: each can be encoded once, for its texts are then added to its figure.
        suffix: png, svg or pdf.
        title: for readers that cannot see the picture.
    """
    name = text_label(title)
    write = {"png": _png, "svg": _svg}.get(suffix)
    return [_pdf(sheets, name)] if write is None else [write(sheet, name) for sheet in sheets]


def _png(sheet: Sheet, name: str) -> bytes:
    data = BytesIO()
    # level 6, the default, takes half as long again for a hundredth less
    options: dict[str, Any] = {"metadata": {"Title": name, "Software": None}, "pil_kwargs": {"compress_level": 3}}
    outlined(sheet).savefig(data, format="png", dpi=DPI, **options)
    return data.getvalue()


def _svg(sheet: Sheet, name: str) -> bytes:
    data = BytesIO()
    written(sheet).savefig(data, format="svg", metadata={"Title": name, "Date": None})
    return data.getvalue()


def _pdf(sheets: Iterable[Sheet], name: str) -> bytes:
    data = BytesIO()
    with PdfPages(data, metadata={"Title": name, "CreationDate": None}) as pages:
        for sheet in sheets:
            figure = written(sheet)
            # In matplotlib's PDF a mark of direction moves the word after it by a space; as outlines words stay where they are.
            for text in sheet.axes.texts:
                if LEFT_TO_RIGHT in text.get_text():
                    text.set_path_effects([Normal()])
            pages.savefig(figure)
    return data.getvalue()


def written(sheet: Sheet) -> Figure:
    """The figure with its texts as text, which can be searched and copied."""
    for text in sheet.texts:
        font = _font(sheet.fonts.families, text.points)
        sheet.axes.text(text.x, text.y, text.text, ha=text.align, va="baseline", color=text.colour, fontproperties=font)
    return sheet.figure


def outlined(sheet: Sheet) -> Figure:
    """The figure with its texts as outlines: where only pixels are left of them, this is several times faster."""
    paths = []
    for text in sheet.texts:
        vertices, codes = _outline(text.text, sheet.fonts.families, text.points)
        left = text.x - _SHIFTS[text.align] * vertices[:, 0].max(initial=0.0)
        # On whole pixels, so that a token looks, and is compressed, alike wherever it stands.
        paths.append(Path(vertices + np.round(np.array([left, text.y]) * DPI) / DPI, codes))
    colours = [text.colour for text in sheet.texts]
    # Not snapped: matplotlib would fit what has no slants to whole pixels, and leave one of a full stop.
    sheet.axes.add_collection(PathCollection(paths, facecolors=colours, linewidths=0, snap=False, zorder=3), autolim=False)
    return sheet.figure


@lru_cache(maxsize=1 << 14)
def _outline(text: str, families: tuple[str, ...], points: float) -> tuple[Array, NDArray[np.uint8]]:
    """[N, 2] vertices of a text's outline from its origin, in inches, and [N] codes of what they are."""
    vertices, codes = text_to_path.get_text_path(_font(families, points), text)
    scale = points / text_to_path.FONT_SCALE / 72
    return np.reshape(np.asarray(vertices, np.float64), (-1, 2)) * scale, np.asarray(codes, np.uint8)


@lru_cache
def _font(families: tuple[str, ...], points: float) -> FontProperties:
    return FontProperties(family=[*families, "sans-serif"], size=points)
