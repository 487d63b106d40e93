"""A folder that appears whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylens.storage.durable import TEMPORARY, fsync_folder
from raylens.storage.errors import UsageError
from raylens.storage.temporary import lacks_place


@contextmanager
def new_folder(option: str, path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which takes that name when the block ends without an error.

    Raises:
        UsageError: something has that name, or nothing can be written there; names the option.
    """
    if not path.name:  # such as / or .
        raise UsageError(f"{option} {path}: is there already; give the name of a new folder")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        if path.exists() or path.is_symlink():
            raise UsageError(f"{option} {path}: is there already; give another name, or move it away")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; give a folder that can be written") from error
    try:
        yield unfinished
        unfinished.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        if error.errno is None or lacks_place(error):  # of no file here: a library's, such as a TimeoutError
            raise
        raise UsageError(f"{option} {path}: {error.strerror}; give a folder that can be written") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
