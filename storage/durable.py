"""Files that survive a crash: written whole, fsynced, and only then given their name; and read whole, whoever made them."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from raylens.storage.errors import OtherFormat, StoreError

T = TypeVar("T")

#: How the name of a file ends that is being written, or that a killed process left.
TEMPORARY = ".tmp"


#: Bytes of a file that is read whole; larger ones are damaged, and are neither read nor written.
MAX_FILE_BYTES = 1 << 30


def not_through_links(path: str, flags: int) -> int:
    """An ``opener`` for files that are written under a fixed name, where a store from elsewhere may have a link, or a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)


def touch(path: Path) -> None:
    """Make an empty file, or have it changed now.

    Raises:
        StoreError: it cannot be written, or is a link.
    """
    with store_errors(path):
        descriptor = not_through_links(str(path), os.O_WRONLY | os.O_CREAT)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def store_errors(place: Path) -> Iterator[None]:
    """Have a full disk, missing permission and the like told in one line.

    Args:
        place: named where the error names no file.

    Raises:
        StoreError: for any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or place}: {error.strerror or error}") from error


class _Versioned(msgspec.Struct):
    format: int


def fits(size: int) -> bool:
    """Whether a file of so many bytes is read whole."""
    return size <= MAX_FILE_BYTES


def read_file(path: Path) -> bytes:
    """A small file whole.

    Raises:
        StoreError: it is larger than any such file should be, or no file: a pipe would be waited for.
        OSError: it cannot be read.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not fits(size):
            raise StoreError(f"{path}: damaged ({size} bytes, more than such a file has)")
        return file.read(size)  # no more: as much memory is taken as is asked for


def open_plain(path: Path) -> BinaryIO:
    """A file of a store, which may be anybody's, to be read.

    Raises:
        StoreError: it is no file: a pipe would be waited for, and a device might never end.
        OSError: it cannot be opened.
    """
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115  the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise StoreError(f"{path}: damaged (no file)")
    return file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode_json(path: Path, data: bytes, kind: type[T], version: int) -> T:
    """The contents of a JSON file whose ``format`` says its version; other versions may differ in all else.

    Raises:
        StoreError: it is damaged.
        OtherFormat: it is of another version.
    """
    try:
        found = msgspec.json.decode(data, type=_Versioned).format
        if found == version:
            return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged ({error})") from error
    raise OtherFormat(f"{path}: format {found}; this raylens reads format {version}")


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, with their names durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with suppress(PermissionError):  # one that may be written, and not read
            fsync_folder(folder.parent)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is not there yet, whose bytes are durable when the block ends; its name only by ``fsync_folder``."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_temporary(path: Path, data: bytes) -> Path:
    if not fits(len(data)):  # nobody could read it, and where it is a commit nothing after it
        raise StoreError(f"{path}: not written ({len(data)} bytes, more than such a file may have)")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with new_file(temporary) as file:
            file.write(data)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_file(path: Path, data: bytes) -> None:
    """Write ``path`` whole, replacing what is there.

    Raises:
        StoreError: it would be larger than ``read_file`` takes.
    """
    _write_temporary(path, data).replace(path)
    fsync_folder(path.parent)


def _has_other_name(temporary: Path) -> bool:
    try:
        return temporary.stat().st_nlink > 1
    except FileNotFoundError:  # as below
        return False


def create_file(path: Path, data: bytes) -> bool:
    """Write ``path`` whole if and only if nothing has that name; False if something has.

    link(2) fails when the name exists, on local disks and NFS alike, so of two processes exactly one succeeds. Over NFS it may
    also fail after it has succeeded, when the answer was lost and it was asked again; the name is then this very file's
    (open(2), of O_EXCL).

    Raises:
        StoreError: it would be larger than ``read_file`` takes.
    """
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not _has_other_name(temporary):
            return False
    except FileNotFoundError:  # a newer owner took this temporary file for garbage
        if path.exists():
            return False
        raise
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True
