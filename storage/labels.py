"""How a token is shown to a reader: one visible label, the same in pictures, pages and the terminal.

A label is for eyes. Two tokens may share one; their ids tell them apart.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from raylens.storage.vocabulary import Vocabulary

#: Blanks that have a sign of their own, one that DejaVu Sans has: U+240D, the sign of a carriage return, few fonts have.
SIGNS = {"\n": "↵", "\t": "⇥", "\r": "⇤", "\u00a0": "⍽"}
#: Letters and marks that Unicode calls printable although nothing, or only a gap, is drawn for them.
_INVISIBLE = frozenset(
    chr(code)
    for first, last in [
        (0x034F, 0x034F),  # combining grapheme joiner
        (0x115F, 0x1160),  # Hangul fillers
        (0x17B4, 0x17B5),  # Khmer inherent vowels
        (0x180B, 0x180F),  # Mongolian variation selectors
        (0x2800, 0x2800),  # empty Braille cell
        (0x3164, 0x3164),
        (0xFFA0, 0xFFA0),
        (0xFE00, 0xFE0F),  # variation selectors
        (0xE0100, 0xE01EF),
    ]
    for code in range(first, last + 1)
)
#: What must stay in one piece when a label is cut or laid out, as a character with its marks: an escape or an unknown id.
ESCAPE = re.compile(r"‹(?:[0-9A-F]{2}|[0-9A-F]{4,6}|id -?\d+)›")


def label(token: bytes | str) -> str:
    """The label of a token given as bytes, or as text.

    Every character of the result is printable, and the only blank in it is the plain space inside a token.
    Bytes that are no valid UTF-8 are shown one by one; so are the lone surrogates that ``surrogateescape`` makes of them.
    """
    text = token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token
    if not text:
        return "∅"
    body = text.lstrip(" ")
    leading = len(text) - len(body)
    # A lone middle dot would be taken for punctuation.
    return "·" * leading + text_label(body) if body else "␣" * leading


def text_label(text: bytes | str) -> str:
    """One line of running text, such as a prompt in a title: as ``label``, but leading spaces stay spaces."""
    text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
    core = text.rstrip(" ")
    return _visible(core) + "␣" * (len(text) - len(core))


def token_label(vocabulary: "Vocabulary", token_id: int) -> str:
    """The label of a token id; ``‹id 49200›`` for one that the tokenizer does not have."""
    token = vocabulary[token_id] if 0 <= token_id < len(vocabulary) else None
    return f"‹id {token_id}›" if token is None else label(token)


def fit(label: str, width_cells: int, keep: Literal["start", "end"] = "start") -> str:
    """The label cut to a width, with ``…`` where something is missing. An escape is kept or dropped whole.

    Args:
        label: what ``label``, ``text_label`` or ``token_label`` gave.
        width_cells: room in terminal cells; East Asian wide characters take 2, combining marks 0.
        keep: which end of the label to keep.
    """
    if width_cells < 1:
        return ""
    if cell_width(label) <= width_cells:
        return label
    parts = pieces(label)
    kept: list[str] = []
    room = width_cells - 1
    for piece in parts if keep == "start" else reversed(parts):
        room -= cell_width(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + "…" if keep == "start" else "…" + "".join(reversed(kept))


def fit_apart(labels: Sequence[str], width_cells: int) -> list[str]:
    """Labels cut as by ``fit``, where those that differ still do if either end of them does."""
    ends: tuple[Literal["start", "end"], ...] = ("start", "end")
    cuts = [[fit(label, width_cells, keep) for label in labels] for keep in ends]
    return next((cut for cut in cuts if len(set(cut)) == len(set(labels))), cuts[0])


def cell_width(label: str) -> int:
    """Width of a label in terminal cells."""
    return sum(map(_cells, label))


def pieces(label: str) -> list[str]:
    """The parts of a label that must not be split, in order; joined, they are the label."""
    found: list[str] = []
    at = 0
    while at < len(label):
        escape = ESCAPE.match(label, at)
        end = escape.end() if escape else at + 1
        while end < len(label) and _is_mark(label[end]):
            end += 1
        found.append(label[at:end])
        at = end
    return found


def _visible(text: str) -> str:
    shown: list[str] = []
    has_base = False  # whether a combining mark that comes next has a character to sit on
    for character in text:
        visible = _show(character)
        if _is_mark(visible) and not has_base:
            visible = "◌" + visible
        has_base = visible[-1] == character != " "
        shown.append(visible)
    return "".join(shown)


@lru_cache(maxsize=1 << 16)
def _show(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"‹{code - 0xDC00:02X}›"
    # isprintable is false for controls, formats, surrogates, private use, unassigned, and every space but the plain one.
    return character if character.isprintable() and character not in _INVISIBLE else f"‹{code:04X}›"


def _is_mark(character: str) -> bool:
    return len(character) == 1 and unicodedata.category(character)[0] == "M"


@lru_cache(maxsize=1 << 16)
def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
