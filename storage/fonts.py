"""Which fonts pictures are drawn with, what those fonts can draw, and how wide it is."""

from bisect import bisect_right
from functools import cache
from pathlib import Path

from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font

from raylens.storage import labels
from raylens.storage.errors import UsageError

#: Families tried after DejaVu Sans, which matplotlib ships. Of each row the first one installed is used.
#: Colour emoji fonts are bitmaps and cannot be used; Noto Emoji is the one with outlines.
_FALLBACKS = (
    ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Micro Hei"),
    ("Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans JP", "Hiragino Sans", "Yu Gothic", "IPAexGothic"),
    ("Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", "NanumGothic"),
    ("Noto Sans Arabic", "Noto Naskh Arabic", "Geeza Pro", "Segoe UI"),
    ("Noto Sans Hebrew", "Arial Hebrew"),
    ("Noto Sans Devanagari", "Kohinoor Devanagari", "Nirmala UI"),
    ("Noto Sans Bengali", "Kohinoor Bangla"),
    ("Noto Sans Tamil", "Tamil Sangam MN"),
    ("Noto Sans Telugu", "Kohinoor Telugu"),
    ("Noto Sans Thai", "Thonburi", "Leelawadee UI"),
    ("WenQuanYi Zen Hei", "Droid Sans Fallback"),
    ("Noto Sans Symbols", "Apple Symbols", "Segoe UI Symbol"),
    ("Noto Sans Symbols 2", "Noto Sans Symbols2"),
    ("Noto Emoji",),
    ("Arial Unicode MS",),
)
_UNUSABLE = (OSError, RuntimeError, ValueError, NotImplementedError)
_EM = 100  # size at which advances are read, in points at 72 dpi


class Fonts:
    """A font family list and the glyphs it has.

    Attributes:
        families: names for matplotlib, in the order in which a glyph is looked for. All of them are installed.
    """

    def __init__(self, faces: dict[str, FT2Font]) -> None:
        """Args: faces: family name -> its regular face."""
        self.families = tuple(faces)
        self._faces = tuple(faces.values())
        self._advances: dict[str, float | None] = {}
        for face in self._faces:
            face.set_size(_EM, 72)

    def drawable(self, text: str) -> str:
        """The text with every character that no family can draw replaced by its code point, as ``‹1F389›``."""
        return "".join(c if self._advance(c) is not None else f"‹{ord(c):04X}›" for c in text)

    def width(self, text: str, points: float) -> float:
        """Width of drawable text in inches at a font size. Kerning and ligatures, which make it narrower, are left out."""
        return sum(self._advance(c) or 0.0 for c in text) * points / 72

    def fit(self, label: str, inches: float, points: float) -> str:
        """The label, drawable and cut with ``…`` to a width in inches."""
        text = self.drawable(label)
        if self.width(text, points) <= inches:
            return text
        # cut to fewer cells it is never wider; an id may have thousands, of which one at a time would take seconds
        narrow = bisect_right(
            range(labels.cell_width(text)), inches, key=lambda cells: self.width(labels.fit(text, cells), points)
        )
        return labels.fit(text, narrow - 1)

    def wrap(self, label: str, inches: float, points: float, lines: int) -> list[str]:
        """The label, drawable and broken into at most so many lines of a width in inches; the rest is cut with ``…``."""
        done: list[str] = []
        parts = labels.pieces(self.drawable(label))
        while parts:
            count = self._fitting(parts, inches, points)
            if count == len(parts) or len(done) == lines - 1:
                return [*done, self.fit("".join(parts), inches, points)]
            done.append("".join(parts[:count]).rstrip(" "))
            parts = parts[count:]
        return done

    def _fitting(self, parts: list[str], inches: float, points: float) -> int:
        """How many of the parts go on a line, at least one: all, or up to a space in the line's second half, or what has room."""
        room = inches
        count = 0
        while count < len(parts) and (room := room - self.width(parts[count], points)) >= 0:
            count += 1
        if count == len(parts):
            return count
        after_space = next((i for i in range(count, 0, -1) if parts[i - 1] == " "), 0)
        return after_space if 2 * after_space > count else max(count, 1)

    def _advance(self, character: str) -> float | None:
        """Advance in ems by the first face that has the character, or None."""
        if character not in self._advances:
            found = (_advance(face, character) for face in self._faces)
            self._advances[character] = next((advance for advance in found if advance is not None), None)
        return self._advances[character]


def _advance(face: FT2Font, character: str) -> float | None:
    if not face.get_char_index(ord(character)):
        return None
    return face.load_char(ord(character)).linearHoriAdvance / (1 << 16) / _EM


@cache
def choose_fonts(extra: Path | None = None) -> Fonts:
    """DejaVu Sans, then the extra font file if given, then the families installed here for other scripts. Chosen once a process.

    Raises:
        UsageError: the extra file is not a font that can be scaled.
    """
    added = [] if extra is None else [_register(extra)]
    installed = {entry.name for entry in fontManager.ttflist}
    wanted = ["DejaVu Sans", *added]
    for row in _FALLBACKS:
        wanted += [family for family in row if family in installed][:1]
    faces = {family: face for family in wanted if (face := _open(family)) is not None}
    return Fonts(faces)


def _register(path: Path) -> str:
    """Family name of a font file, made known to matplotlib."""
    try:
        fontManager.addfont(path)
        return FT2Font(str(path)).family_name
    except _UNUSABLE as error:
        raise UsageError(f"font {path}: cannot be used: {error}; give a TrueType or OpenType file with outlines") from error


def _open(family: str) -> FT2Font | None:
    # The list of installed fonts is cached on disk and may name files that are gone or that FreeType cannot use.
    try:
        path = fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False)
        face = getattr(path, "face_index", 0)
        return FT2Font(path, face_index=face) if face else FT2Font(path)
    except _UNUSABLE:
        return None
