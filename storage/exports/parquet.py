"""Parquet: the rows of ``exports.rows``, for DuckDB, polars, pandas and ``datasets.load_dataset("parquet", ...)``."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from raylens.storage.exports.rows import ROWS, batches
from raylens.storage.run import Run

#: Rows after which a row group ends; a record is never split.
GROUP = 1 << 17


def write(run: Run, file: BinaryIO) -> None:
    """Write the rows of every record.

    Raises:
        StoreError: a segment is damaged.
    """
    # Without Arrow's schema the dictionaries read as plain text, which is all that datasets knows.
    with pq.ParquetWriter(file, ROWS, compression="zstd", store_schema=False) as writer:
        for group in _groups(batches(run)):
            writer.write_table(pa.Table.from_batches(group, ROWS).unify_dictionaries())


def _groups(parts: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    rows = 0
    for part in parts:
        group.append(part)
        rows += len(part)
        if rows >= GROUP:
            yield group
            group, rows = [], 0
    if group:
        yield group
