"""JSON lines: the stored lines of every record and failure, in corpus order."""

from collections.abc import Iterator
from typing import BinaryIO

from raylens.storage.run import Run


def write(run: Run, file: BinaryIO) -> None:
    """Write each prompt's line; the whole run is never in memory.

    Raises:
        StoreError: a segment is damaged.
    """
    file.writelines(lines(run))


def lines(run: Run) -> Iterator[bytes]:
    """Each prompt's JSON line with its newline.

    Raises:
        StoreError: a segment is damaged.
    """
    for entry in run.entries:
        yield run.line(entry.id)
