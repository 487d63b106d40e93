"""CSV with a header: the rows of ``exports.rows``."""

from typing import BinaryIO

import pyarrow.csv

from raylens.storage.exports.rows import ROWS, batches
from raylens.storage.run import Run


def write(run: Run, file: BinaryIO) -> None:
    """Write the rows of every record; texts are quoted, and what is null is empty.

    Raises:
        StoreError: a segment is damaged.
    """
    with pyarrow.csv.CSVWriter(file, ROWS) as writer:
        for batch in batches(run):
            writer.write_batch(batch)
