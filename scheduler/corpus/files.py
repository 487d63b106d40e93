"""Corpus files: finding them, and their lines with numbers."""

import glob
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from gzip import BadGzipFile
from pathlib import Path
from typing import BinaryIO

import zstandard

from raylens.scheduler.corpus.compression import decompressed
from raylens.scheduler.corpus.spool import Spool
from raylens.storage.errors import InputError, UsageError
from raylens.storage.paths import given_path

#: The most bytes a row may have.
ROW_LIMIT = 64 << 20

_PIECE = 1 << 20
_BUFFER = 1 << 18
_BOM = b"\xef\xbb\xbf"
_NEWLINE = 0x0A


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a corpus; can be opened any number of times.

    Attributes:
        name: what to call it in errors, as the user wrote it.
        open_raw: opens its bytes as they are.
        spooled: it was a stream, so its name says nothing about its format.
    """

    name: str
    open_raw: Callable[[], BinaryIO]
    spooled: bool = False

    @property
    def compression(self) -> str:
        """``.gz``, ``.zst`` or empty."""
        suffix = "" if self.spooled else Path(self.name).suffix.lower()
        return suffix if suffix in (".gz", ".zst") else ""

    @property
    def extension(self) -> str:
        """The extension under that of the compression, in lower case."""
        name = Path(self.name)
        return (Path(name.stem) if self.compression else name).suffix.lower()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its plain bytes. Raises InputError for a file that cannot be read, is damaged or cut short."""
        with reading(self.name), self.open_raw() as raw, decompressed(raw, self.compression) as stream:
            yield stream


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what goes wrong when reading ``name`` into InputError."""
    try:
        yield
    except (BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(
            name, f"cannot be decompressed ({error})", "it is damaged or cut short: copy or compress it again"
        ) from None
    except FileNotFoundError:
        raise InputError(name, "no such file", "check the path") from None
    except OSError as error:
        raise InputError(name, f"cannot be read ({error.strerror})", "check the path and its permissions") from None


def find_files(sources: tuple[str, ...]) -> list[InputFile]:
    """The files that paths, globs and ``-`` name, in that order; the matches of a glob sorted.

    Standard input and pipes are read to their end here.

    Raises:
        InputError: for a path or pattern without a readable file.
        UsageError: for a file named twice, and for the home of a user who is not there.
    """
    paths = [path for source in sources for path in _expand(source)]
    named: set[object] = set()
    for path in paths:
        which = _identity(path)
        if which in named:
            raise UsageError(f"{path}: named more than once, its prompts would be doubled; name every file once")
        named.add(which)
    return [_file(path) for path in paths]


def _identity(path: str) -> object:
    """The same for two names of one file; a path that is none yet is told when it is opened."""
    if path == "-":  # standard input, whatever file has that name
        return path
    try:
        found = Path(path).stat()
    except OSError:
        return path
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else path


def _expand(source: str) -> list[str]:
    if source.startswith("~"):  # of others, each byte is kept: ./- is a file, and no name need be UTF-8
        source = str(given_path(source, "corpus"))
    if source == "-" or not glob.has_magic(source):
        return [source]
    with reading(source):
        if Path(source).exists():
            return [source]
    # Path.glob takes no absolute patterns.
    matches = sorted(path for path in glob.glob(source, recursive=True) if not Path(path).is_dir())  # noqa: PTH207
    if not matches:
        raise InputError(source, "matches no file", "check the pattern")
    return matches


def _file(path: str) -> InputFile:
    if path == "-":
        if sys.stdin is None:
            raise InputError("stdin", "is closed", "give a file, or pipe prompts into the command")
        return InputFile("stdin", Spool(sys.stdin.buffer, "stdin").open, spooled=True)
    with reading(path):
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(path, "is a directory", f"name its files, such as {Path(path) / '*.jsonl'}")
        if stat.S_ISREG(mode):
            return InputFile(path, partial(_open, path))
        with _open(path) as pipe:
            return InputFile(path, Spool(pipe, path).open, spooled=True)


def _open(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=_BUFFER)


def lines(file: InputFile) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, each with its line end; without a byte order mark.

    Raises:
        InputError: for a line longer than ROW_LIMIT, before all of it is read.
    """
    number = 0
    with file.open() as stream:
        read = stream.readline
        while line := read(_PIECE):
            number += 1
            if len(line) == _PIECE:
                line = _whole_line(file, number, line, read)
            yield number, line.removeprefix(_BOM) if number == 1 else line


def _whole_line(file: InputFile, number: int, start: bytes, read: Callable[[int], bytes]) -> bytes:
    line = bytearray(start)
    while line[-1] != _NEWLINE and (piece := read(_PIECE)):
        line += piece
        if len(line) > ROW_LIMIT:
            raise too_long(f"{file.name}:{number}", "line")
    return bytes(line)


def too_long(place: str, what: str) -> InputError:
    """The error for a line or row over ROW_LIMIT."""
    return InputError(place, f"a {what} longer than {ROW_LIMIT >> 20} MiB", "split it, or check that the format is right")


def is_blank(line: bytes) -> bool:
    """Whether a line has nothing but ASCII white space."""
    return not line or line.isspace()


def decode(file: InputFile, number: int, line: bytes) -> str:
    """The text of a line. Raises InputError with the place of the first byte that is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 (byte 0x{line[error.start]:02x} at offset {error.start} of the line)"
        raise InputError(f"{file.name}:{number}", problem, "save the file as UTF-8") from None


def first_byte(file: InputFile) -> bytes:
    """The first byte that is not white space, or nothing."""
    with file.open() as stream:
        start = stream.read(_PIECE).removeprefix(_BOM).lstrip()
        while not start and (piece := stream.read(_PIECE)):
            start = piece.lstrip()
    return start[:1]
