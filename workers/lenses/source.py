"""``--lens``: which lens, and where its file is. Knows no torch, so that a wrong option is told at once."""

import hashlib
import stat
from pathlib import Path

import msgspec

from raylens.storage.errors import ModelError, UsageError, brief
from raylens.storage.paths import given_path
from raylens.storage.taps import DEFAULT_TAPS

#: Kind -> the taps it reads. Only residuals that a map was fitted to; the logit lens reads whatever has the width.
TAPS_OF = {
    "logit": None,
    "tuned": ("resid_pre", "resid_post"),
    "jacobian": ("resid_post",),
    "linear": ("resid_post",),
}
_REASONS = {
    "tuned": "its translators are fitted to the residual between blocks",
    "jacobian": "its matrices are those of block outputs",
    "linear": "its matrices are those of block outputs",
}
_CHOICES = "choose logit, tuned:FOLDER, jacobian:FILE or linear:FILE"


class LensSource(msgspec.Struct, frozen=True):
    """A lens that was asked for.

    Attributes:
        kind: logit, tuned, jacobian or linear.
        path: its file or folder; None for the logit lens.
    """

    kind: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.kind if self.path is None else f"{self.kind}:{self.path}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that make it up; tuned-lens's folder has two."""
        if self.path is None:
            return ()
        return (self.path / "config.json", self.path / "params.pt") if self.kind == "tuned" else (self.path,)


def parse_lens(spec: str) -> LensSource:
    """``logit``, or ``KIND:PATH``.

    Raises:
        UsageError: no such kind, or a path where none belongs or is missing.
    """
    kind, _, path = str(spec).partition(":")  # a caller from Python may give anything
    if kind not in TAPS_OF:
        raise UsageError(f"--lens {brief(spec)}: there is no such lens; {_CHOICES}")
    if (kind == "logit") != (not path):
        raise UsageError(f"--lens {brief(spec)}: {'takes no path' if path else 'give its path'}; {_CHOICES}")
    return LensSource(kind, given_path(path, "--lens") if path else None)


def lens_taps(source: LensSource, asked: tuple[str, ...] | None, option: str = "--taps") -> tuple[str, ...] | None:
    """The taps of a run with this lens; None leaves the choice to the model.

    Raises:
        UsageError: a tap asked for that it does not read; with the reason.
    """
    readable = TAPS_OF[source.kind]
    if readable is None:
        return asked
    for tap in asked or ():
        if tap not in readable:
            raise UsageError(
                f"{option} {tap}: the {source.kind} lens does not read it, for {_REASONS[source.kind]}; "
                f"choose from {', '.join(readable)}, or --lens logit"
            )
    return asked or tuple(tap for tap in DEFAULT_TAPS if tap in readable)


def lens_digest(source: LensSource) -> str | None:
    """The first 16 hex digits of SHA-256 over its files; None for the logit lens, which has none.

    Raises:
        ModelError: a file cannot be read.
    """
    if source.path is None:
        return None
    lens_state(source)
    digest = hashlib.sha256()
    for path in source.files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise bad_file(path, str(error.strerror), _remedy(source)) from error
    return digest.hexdigest()[:16]


def lens_state(source: LensSource) -> tuple[tuple[int, int], ...]:
    """Size and time of change of each of its files, by which one that was written anew is known without reading it.

    Raises:
        ModelError: a file is not there, or no file: a device might never end.
    """
    found = []
    for path in source.files:
        try:
            state = path.stat()
        except OSError as error:
            raise bad_file(path, str(error.strerror), _remedy(source)) from error
        if not stat.S_ISREG(state.st_mode):
            raise bad_file(path, "no plain file", _remedy(source))
        found.append((state.st_size, state.st_mtime_ns))
    return tuple(found)


def bad_file(path: Path, problem: str, remedy: str) -> ModelError:
    """The error of a lens's file that cannot be used."""
    return ModelError(f"--lens: {path}: {problem}; {remedy}")


def _remedy(source: LensSource) -> str:
    if source.kind == "tuned":
        return "give the folder that tuned-lens saved, with config.json and params.pt"
    return "give one file, .safetensors or of torch.save"
