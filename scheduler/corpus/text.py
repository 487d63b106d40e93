"""Plain text: a line or a paragraph a prompt."""

from collections.abc import Iterator
from typing import Literal

from raylens.scheduler.corpus.files import ROW_LIMIT, InputFile, decode, is_blank, lines, too_long

Style = Literal["txt", "lines", "paragraphs"]


def rows(file: InputFile, style: Style) -> Iterator[tuple[int, str]]:
    """Prompts with the number of their first line.

    Blank lines are skipped; all other text is kept as it is, without the end of its last line.

    Raises:
        InputError: for bytes that are not UTF-8, and for a row over ROW_LIMIT.
    """
    if style == "paragraphs" or (style == "txt" and _has_paragraphs(file)):
        return _paragraphs(file)
    return _lines(file)


def _has_paragraphs(file: InputFile) -> bool:
    """Whether a blank line stands between text."""
    text = gap = False
    for _, line in lines(file):
        if is_blank(line):
            gap = text
        elif gap:
            return True
        else:
            text = True
    return False


def _lines(file: InputFile) -> Iterator[tuple[int, str]]:
    for number, line in lines(file):
        if not is_blank(line):
            yield number, decode(file, number, _without_end(line))


def _paragraphs(file: InputFile) -> Iterator[tuple[int, str]]:
    start = size = 0
    parts: list[str] = []
    for number, line in lines(file):
        if is_blank(line):
            if parts:
                yield start, "\n".join(parts)
            parts = []
            continue
        if not parts:
            start, size = number, 0
        size += len(line)
        if size > ROW_LIMIT:
            raise too_long(f"{file.name}:{start}", "paragraph")
        parts.append(decode(file, number, _without_end(line)))
    if parts:
        yield start, "\n".join(parts)


def _without_end(line: bytes) -> bytes:
    if line.endswith(b"\r\n"):
        return line[:-2]
    return line.removesuffix(b"\n")
