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


def stats(kind: str) -> tuple[str, ...]:
    """The stats that can colour a kind of picture, the default first.

    Raises:
        UsageError: no such kind.
    """
    return _kind(kind).STATS


def plot(
    record: "Record",
    kind: str,
    path: str | Path,
    *,
    vocabulary: "Vocabulary",
    model: str,
    stat: str | None = None,
    tap: str | None = None,
    positions: "Sequence[int] | None" = None,
    title: str | None = None,
    layer_step: int = 1,
    tokens: "Sequence[int] | None" = None,
    font: str | Path | None = None,
) -> Path:
    """Draw one picture of a record into a file. The same arguments give the same bytes.

    Args:
        kind: one of ``KINDS``.
        path: the file to write; its suffix (.png, .svg or .pdf) chooses the format.
        vocabulary: the run's, ``run.vocabulary``.
        model: the model's name, for the heading.
        stat: the value to show, one of ``stats(kind)``; by default the first of them.
        tap: the tap to show, by raylens's or LogitLens4LLMs's name; by default ``resid_post``, in a rank picture all taps.
        positions: the positions to show, from 0; by default the last 24 in a grid, otherwise the last one. Kinds other than
            grid show one only.
        title: the heading; the names of the model and the prompt then go to the line below it.
        layer_step: show every Nth layer, counted from the last one down.
        tokens: token ids for a trajectory to follow (by default the top tokens of the last layer), the one whose values colour
            a grid, or the one or two whose logit an attribution explains.
        font: a font file for characters that DejaVu Sans lacks.

    Returns:
        The path written.

    Raises:
        UsageError: an argument does not fit the record or the kind, the picture is too large, or the file cannot be written.
    """
    from raylens.storage.plots.request import Request

    request = Request(model, stat, tap, positions, title, layer_step, tokens)
    (written,) = write(record, kind, path, request, vocabulary=vocabulary, font=font)
    return written


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
        UsageError: as ``plot``.
    """
    from raylens.storage.plots.paging import numbered

    path = Path(path)
    suffix = picture_format(path)
    files = render(record, kind, suffix, request, vocabulary=vocabulary, font=font)
    paths = numbered(path, len(files)) if request.pages and suffix != "pdf" else [path]
    for each, data in zip(paths, files, strict=True):
        write_picture(each, data)
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


def write_picture(path: Path, data: bytes) -> None:
    """Write a picture.

    Raises:
        UsageError: the path cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}; choose another path") from error


def render(
    record: "Record", kind: str, suffix: str, request: "Request", *, vocabulary: "Vocabulary", font: str | Path | None = None
) -> list[bytes]:
    """The files that ``write`` would write, in memory.

    Args:
        suffix: one of ``FORMATS``.

    Raises:
        UsageError: as ``plot``.
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
