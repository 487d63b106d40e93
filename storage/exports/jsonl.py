"""JSON lines: the stored lines of every record and failure, in corpus order."""

from collections.abc import Iterator

from raylens.storage.store import Run


def lines(run: Run) -> Iterator[bytes]:
    """Each prompt's JSON line with its newline; the whole run is never in memory.

    Raises:
        StoreError: a segment is damaged.
    """
    for entry in run.entries:
        yield run.line(entry.id)
