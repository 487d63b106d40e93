"""Static pictures of a record, drawn from what is stored and never from a model.

A kind of picture is a module of this folder with ``STATS``, the stats that can colour it, the default first, and
``pages(record, vocabulary, request)``, what each page shows, and ``draw(page, fonts)``; its name is in ``KINDS``.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from raylens.storage.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raylens.storage.fonts import Fonts
    from raylens.storage.plots.canvas import Sheet
    from raylens.storage.plots.request import Request
    from raylens.storage.record import Record
    from raylens.storage.vocabulary import Vocabulary

#: The kinds of picture.
KINDS = ("attribution", "grid", "rank", "trajectory")
#: The file formats, by suffix.
FORMATS = ("png", "svg", "pdf")


class _Kind(Protocol):
    STATS: tuple[str, ...]

    def pages(self, record: "Record", vocabulary: "Vocabulary", request: "Request") -> "Sequence[Any]": ...

    def draw(self, picture: Any, fonts: "Fonts") -> "Sheet": ...


def write(
    record: "Record",
    kind: str,
    path: str | Path,
    request: "Request",
    *,
    vocabulary: "Vocabulary",
    font: str | Path | None = None,
) -> list[Path]:
    """Draw a record into a file; with ``request.pages``, into numbered files, one per page, or one PDF with all pages.

    Returns:
        The paths written.

    Raises:
        UsageError: what is asked does not fit the record or the kind, a picture too large, or a path that cannot be written.
    """
    path = Path(path)
    files = render(record, kind, picture_format(path), request, vocabulary=vocabulary, font=font)
    return save(path, files, request.pages)


def save(path: Path, files: list[bytes], pages: bool) -> list[Path]:
    """Write a picture, or its pages into numbered files; the paths.

    Raises:
        UsageError: a path cannot be written.
    """
    from raylens.storage.plots.paging import numbered

    paths = numbered(path, len(files)) if pages and picture_format(path) != "pdf" else [path]
    for each, data in zip(paths, files, strict=True):
        try:
            each.write_bytes(data)
        except OSError as error:
            raise UsageError(f"{each}: cannot be written: {error.strerror}; choose another path") from error
    return paths


def picture_format(path: Path) -> str:
    """The format that the name of a picture asks for.

    Raises:
        UsageError: none of ``FORMATS``.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(f"{path}: the name of a picture must end in .png, .svg or .pdf")
    return suffix


def render(
    record: "Record", kind: str, suffix: str, request: "Request", *, vocabulary: "Vocabulary", font: str | Path | None = None
) -> list[bytes]:
    """The files that ``write`` would write, in memory.

    Args:
        suffix: one of ``FORMATS``.

    Raises:
        UsageError: as ``write``.
    """
    from raylens.storage.fonts import choose_fonts
    from raylens.storage.plots import canvas
    from raylens.storage.plots.files import encode

    drawer = _kind(kind)
    fonts = choose_fonts(None if font is None else Path(font))
    with canvas.settled(fonts):
        sheets = (drawer.draw(page, fonts) for page in drawer.pages(record, vocabulary, request))
        return encode(sheets, suffix, request.heading(record))


def _kind(kind: str) -> _Kind:
    if kind not in KINDS:
        raise UsageError(f"picture kind {kind!r}: choose from {', '.join(KINDS)}")
    return cast("_Kind", import_module(f"raylens.storage.plots.{kind}"))
