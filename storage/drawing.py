"""A picture of a run or of one of its prompts, as the command line and Python ask for it."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from raylens.storage import charts, plots
from raylens.storage.errors import UsageError, brief
from raylens.storage.labels import fit, text_label
from raylens.storage.layers import as_text
from raylens.storage.paths import given_path
from raylens.storage.plots.canvas import DPI
from raylens.storage.plots.request import Request, for_record
from raylens.storage.python_values import plain
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.vocabulary import Vocabulary
from raylens.storage.wanted import Wanted, ids_of, wanted

#: Choices that only pictures of prompts have, only charts of runs, and only rank pictures.
_OF_PROMPTS = ("stat", "tap", "layer_step", "token", "important", "important_threshold", "pages")
_OF_RUNS = ("against", "by")
_OF_RANKS = ("important", "important_threshold")
#: What choices are, in words too.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "stat": (str, "text"),
    "tap": (str, "the name of one tap"),
    "layer_step": (int, "a whole number"),
    "important": (int, "a whole number"),
    "important_threshold": ((int, float), "a number"),
    "against": (Run, "a run, such as store['name']"),
    "by": (str, "text"),
}
#: Characters of a text that is a title.
_TITLE = 80


@dataclass(frozen=True, slots=True)
class Choices:
    """What is to be drawn; each is an option of ``raylens plot`` by its name.

    Attributes:
        kind: one of ``plots.KINDS``, which draw a prompt, or of ``charts.KINDS``, which draw a run.
        against: the run that ``compare`` holds against this one.
    """

    kind: str
    stat: str | None = None
    tap: str | None = None
    positions: str | int | None = None
    layer_step: int | None = None
    token: str | int | Sequence[str | int] = ()
    important: int | None = None
    important_threshold: float | None = None
    pages: bool = False
    against: Run | None = None
    by: str | None = None
    font: str | Path | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, plain(getattr(self, one.name), f"--{one.name.replace('_', '-')}"))

    def check(self) -> None:
        """Refuse what the kind of picture has no use for.

        Raises:
            UsageError: naming the option.
        """
        self._check_types()
        for name in ("layer_step", "important"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give a number from 1")
        if self.kind in charts.KINDS:
            self._refuse(_OF_PROMPTS)
            if (self.kind == "compare") != (self.against is not None):
                raise UsageError("--kind compare needs the other run, and only it does: --against RUN")
            return
        if self.kind not in plots.KINDS:
            raise UsageError(f"--kind {brief(self.kind)}: choose from {', '.join((*plots.KINDS, *charts.KINDS))}")
        self._refuse(_OF_RUNS)
        self._refuse(("token",) if self.kind == "rank" else _OF_RANKS)

    def _check_types(self) -> None:
        """Of what Python gives; the command line gives the right ones."""
        for name, (kind, words) in _TYPES.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise UsageError(f"--{name.replace('_', '-')}: give {words}, not {type(value).__name__} {brief(value)!r}")

    def _refuse(self, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value is not False and value not in ((), []):  # the token of id 0 is one
                raise UsageError(f"--{name.replace('_', '-')}: does not go with --kind {self.kind}; leave it out")

    def request(self, run: Run | None, title: str | None = None) -> Request:
        """What is asked of the picture of any prompt, of a run or of none."""
        return Request(
            source="" if run is None else f"{run.manifest.title} · run {run.name}",
            stat=self.stat,
            tap=self.tap,
            title=title,
            layer_step=self.layer_step or 1,
            important=self.important,
            threshold=self.important_threshold,
            pages=self.pages,
        )

    def place(self) -> str | None:
        """The positions as text; None for those of the kind."""
        return None if self.positions is None else str(as_text(self.positions))

    def tokens(self, run: Run) -> Wanted | None:
        """The tokens in the run's terms."""
        return wanted(self.token, run) if self.token not in ((), []) else None


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture; a notebook shows its first page if it is a PNG or an SVG.

    Attributes:
        format: ``png``, ``svg`` or ``pdf``.
        pages: the bytes of each file; a PDF holds all pages in one.
        paths: where they were written, if they were.
    """

    format: str
    pages: list[bytes] = field(repr=False)
    paths: list[Path]

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]] | None:
        if self.format != "png":
            return None
        width, height = struct.unpack(">II", self.pages[0][16:24])
        return self.pages[0], {"width": round(width * 96 / DPI), "height": round(height * 96 / DPI)}  # a screen's 96 an inch

    def _repr_svg_(self) -> str | None:
        return self.pages[0].decode() if self.format == "svg" else None


def draw(run: Run, prompt_id: str | None, choices: Choices, output: str | Path | None = None) -> Picture:
    """Draw a prompt of a run, or without one the run.

    Args:
        output: file to write, whose name ends in .png, .svg or .pdf; without one the picture is a PNG in memory.

    Raises:
        UsageError: a choice that does not fit the kind, the run or the prompt, or a path that cannot be written.
        StoreError: what is stored is missing or damaged.
    """
    choices.check()
    if choices.kind not in charts.KINDS:
        if prompt_id is None:
            raise UsageError(f"--kind {choices.kind} draws one prompt: name one of run {run.name!r}")
        request, tokens = choices.request(run), choices.tokens(run)
        return draw_record(run.record(prompt_id), choices, output, request, tokens, run.vocabulary)
    if prompt_id is not None:
        raise UsageError(f"--kind {choices.kind} draws a whole run, and {prompt_id[:80]!r} is a prompt: name the run alone")
    path, suffix = _target(output)
    by, positions = choices.by, choices.place()
    files = [charts.render(run, suffix, other=choices.against, by=by, positions=positions, font=choices.font)]
    return _picture(path, suffix, files, pages=False)


def draw_record(
    record: Record,
    choices: Choices,
    output: str | Path | None,
    request: Request,
    tokens: Wanted | None,
    vocabulary: Vocabulary,
) -> Picture:
    """Draw a record; raises what ``draw`` does."""
    path, suffix = _target(output)
    request = for_record(request, record, choices.place(), tokens)
    files = plots.render(record, choices.kind, suffix, request, vocabulary=vocabulary, font=choices.font)
    return _picture(path, suffix, files, choices.pages)


def draw_alone(record: Record, choices: Choices, output: str | Path | None, title: str | None, vocabulary: Vocabulary) -> Picture:
    """Draw a record of no run; its text is the title unless one is given. Raises what ``draw`` does."""
    if choices.kind in charts.KINDS:
        raise UsageError(f"--kind {choices.kind} draws a whole run; choose from {', '.join(plots.KINDS)}")
    choices.check()
    request = choices.request(None, fit(text_label(record.text), _TITLE) if title is None else title)
    tokens = Wanted(ids_of(choices.token, vocabulary)) if choices.token not in ((), []) else None
    return draw_record(record, choices, output, request, tokens, vocabulary)


def _target(output: str | Path | None) -> tuple[Path | None, str]:
    path = None if output is None else given_path(output, "--output")
    return path, "png" if path is None else plots.picture_format(path)


def _picture(path: Path | None, suffix: str, files: list[bytes], pages: bool) -> Picture:
    return Picture(suffix, files, [] if path is None else plots.save(path, files, pages))
