"""Figures as files: PNG, SVG and PDF, the same bytes each time."""

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
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from raylens.storage.labels import text_label
from raylens.storage.plots.canvas import DPI, LEFT_TO_RIGHT, Array

#: How much of a text is to the left of where it is put.
_SHIFTS = {"left": 0.0, "center": 0.5, "right": 1.0}


def encode(figures: Iterable[Figure], suffix: str, title: str) -> list[bytes]:
    """A file of each figure, or one PDF of all, without dates or random names in it. Call within ``settled``.

    Args:
        figures: of ``Sheet``; they are changed on the way, so that each can be encoded once.
        suffix: png, svg or pdf.
        title: for readers that cannot see the picture.
    """
    name = text_label(title)
    if suffix == "pdf":
        return [_pdf(figures, name)]
    metadata: dict[str, Any] = {"Title": name, "Software": None} if suffix == "png" else {"Title": name, "Date": None}
    files = []
    for figure in figures:
        if suffix == "png":
            _outline_texts(figure)
        data = BytesIO()
        figure.savefig(data, format=suffix, dpi=DPI, metadata=metadata)
        files.append(data.getvalue())
    return files


def _pdf(figures: Iterable[Figure], name: str) -> bytes:
    data = BytesIO()
    with PdfPages(data, metadata={"Title": name, "CreationDate": None}) as pages:
        for figure in figures:
            # In matplotlib's PDF a mark of direction moves the word after it by a space; as outlines words stay where they are.
            for text in figure.findobj(Text):
                if LEFT_TO_RIGHT in text.get_text():
                    text.set_path_effects([Normal()])
            pages.savefig(figure)
    return data.getvalue()


def _outline_texts(figure: Figure) -> None:
    """Outlines in the place of all texts, whose layout and glyphs one by one would take most of a picture's time."""
    for axes in figure.axes:
        outlines, colours = [], []
        for text in axes.texts:
            text.set_visible(False)
            vertices, codes = _outline(text.get_text(), text.get_fontproperties())
            x, y = text.get_position()
            left = x - _SHIFTS[text.get_horizontalalignment()] * vertices[:, 0].max(initial=0.0)
            # On whole pixels, so that a token looks, and is compressed, alike wherever it stands.
            origin = np.round(np.array([left, y]) * DPI) / DPI
            outlines.append(Path(vertices + origin, codes))
            colours.append(text.get_color())
        axes.add_collection(PathCollection(outlines, facecolors=colours, linewidths=0, zorder=3))


@lru_cache(maxsize=1 << 14)
def _outline(text: str, font: FontProperties) -> tuple[Array, NDArray[np.uint8]]:
    """[N, 2] vertices of a text's outline from its origin, in inches, and [N] codes of what they are."""
    vertices, codes = text_to_path.get_text_path(font, text)
    scale = font.get_size_in_points() / text_to_path.FONT_SCALE / 72
    return np.reshape(np.asarray(vertices, np.float64), (-1, 2)) * scale, np.asarray(codes, np.uint8)
