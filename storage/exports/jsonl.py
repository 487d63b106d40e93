"""JSON lines: the stored lines of every record and failure, in corpus order."""

from typing import BinaryIO

from raylens.storage.run import Run


def write(run: Run, file: BinaryIO) -> None:
    """Write each prompt's line; the whole run is never in memory.

    Raises:
        StoreError: a segment is damaged.
    """
    file.writelines(run.line(entry.id) for entry in run.entries)
