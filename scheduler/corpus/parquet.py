"""Parquet through pyarrow."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from raylens.scheduler.corpus.files import InputFile
from raylens.scheduler.corpus.rows import BadRow, RowKeys
from raylens.scheduler.corpus.spool import Spool
from raylens.scheduler.corpus.values import plain_row
from raylens.storage.errors import InputError

#: Rows that are in memory at a time, and bytes of them on average.
_BATCH_ROWS, _BATCH_BYTES = 1024, 16 << 20


def rows(file: InputFile, keys: RowKeys) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as dictionaries of JSON values, with their numbers from 1.

    Raises:
        InputError: for a file that is not Parquet, lacks the columns wanted, or holds values that JSON cannot.
    """
    with file.open() as stream:
        if not file.compression:
            yield from _rows(file, stream, keys)
            return
        # Parquet is read from its end, a compressed stream only from its start.
        with Spool(stream, file.name).open() as whole:
            yield from _rows(file, whole, keys)


def _rows(file: InputFile, stream: BinaryIO, keys: RowKeys) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in _batches(file, stream, keys):
        for row in batch:
            number += 1
            try:
                yield number, plain_row(row)
            except BadRow as bad:
                raise InputError(f"{file.name} row {number}", bad.problem, bad.remedy) from None


def _batches(file: InputFile, stream: BinaryIO, keys: RowKeys) -> Iterator[list[dict[str, Any]]]:
    # Imported here: corpora of text need not wait for it.
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        # The same errors come from opening and from reading on.
        with ParquetFile(stream) as table:
            names = table.schema_arrow.names
            _check_names(file, names, keys)
            for number in range(table.num_row_groups):
                group = table.metadata.row_group(number)
                fitting = group.num_rows * _BATCH_BYTES // max(1, group.total_byte_size)
                for batch in table.iter_batches(min(max(1, fitting), _BATCH_ROWS), row_groups=[number]):
                    yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0]
        if reason.startswith("Nanosecond"):
            raise InputError(
                file.name, "has times in nanoseconds, which JSON dates cannot hold", "cast them to microseconds"
            ) from None
        raise InputError(file.name, f"cannot be read as Parquet ({reason})", "check that it is a whole Parquet file") from None


def _check_names(file: InputFile, names: list[str], keys: RowKeys) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(file.name, f"has column {min(twice)!r} twice", "give every column its own name")
    keys.check_columns(file.name, names)
