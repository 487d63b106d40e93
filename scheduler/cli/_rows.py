"""Rows of a query on stdout or in a file: a table for people, or JSON lines, CSV or Parquet that are written as they are made."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import together
from raylens.scheduler.cli._output import print_table, write_bytes
from raylens.storage.errors import UsageError, one_line
from raylens.storage.labels import fit, label, text_label

if TYPE_CHECKING:
    import pyarrow as pa

    from raylens.storage.result import Result

#: Rows of a table for people; the other forms have no limit.
MAX_ROWS = 500
#: Cells of one column of a table.
MAX_WIDTH = 60
#: Columns of text that is one token, in which a leading blank is shown.
TOKENS = ("token", "input", "next", "final", "before", "after")
_CRLF = "\r\n"

#: The form of the rows.
output_options = together(
    click.option("--json", "as_json", is_flag=True, help="Print JSON lines, one object per row."),
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header."),
    click.option("--parquet", metavar="FILE", help="Write a Parquet file; - is stdout."),
)


def print_rows(result: "Result", as_json: bool, as_csv: bool, parquet: str | None) -> None:
    """Write the rows in the form asked for.

    Raises:
        UsageError: two forms at once, or a file that cannot be written.
    """
    if as_json + as_csv + (parquet is not None) > 1:
        raise UsageError("--json, --csv, --parquet: give one of them")
    with _told(), result.reader() as reader:
        if as_json:
            _write_lines(_json(row) + b"\n" for row in _rows(reader))
        elif as_csv:
            _write_lines(_csv_lines(reader))
        elif parquet is not None:
            write_bytes(parquet, lambda file: _write_parquet(reader, file), "--parquet")
        else:
            _print_table(reader)


@contextmanager
def _told() -> Iterator[None]:
    """Values that the form has no room for, as one line."""
    import pyarrow as pa

    try:
        yield
    except (OverflowError, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"a column holds what this form cannot ({one_line(error)}); cast it to VARCHAR") from error


def _rows(reader: "pa.RecordBatchReader") -> Iterator[dict[str, Any]]:
    for batch in reader:
        yield from batch.to_pylist()


def _write_lines(lines: Iterable[bytes]) -> None:
    def write(file: Any) -> None:
        for line in lines:
            file.write(line)

    write_bytes(None, write)


class _Lines(io.StringIO):
    """Ends rows in a line feed alone. csv quotes the characters of the line end that it is given, so it is given both."""

    def write(self, row: str) -> int:
        return super().write(f"{row.removesuffix(_CRLF)}\n")


def _csv_lines(reader: "pa.RecordBatchReader") -> Iterator[bytes]:
    buffer = _Lines()
    writer = csv.writer(buffer, lineterminator=_CRLF)
    writer.writerow(reader.schema.names)
    for batch in reader:
        columns = [[_csv_cell(value) for value in column.to_pylist()] for column in batch.columns]
        writer.writerows(zip(*columns, strict=True))
        yield _taken(buffer)
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode()


def _csv_cell(value: Any) -> Any:
    """Lists and objects as JSON; the rest as it is."""
    return _json(value).decode() if isinstance(value, list | dict) else _plain(value)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has no form for: a whole Decimal is a number, bytes are hex, anything else is its text."""
    if isinstance(value, Decimal):
        return _plain(int(value)) if value == value.to_integral_value() else float(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:  # of which JSON's readers make inexact floats
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _write_parquet(reader: "pa.RecordBatchReader", file: Any) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)


def _print_table(reader: "pa.RecordBatchReader") -> None:
    shown: list[list[str]] = []
    names = reader.schema.names
    for batch in reader:
        columns = [
            [_cell(name, value) for value in column.to_pylist()] for name, column in zip(names, batch.columns, strict=True)
        ]
        shown.extend(map(list, zip(*columns, strict=True)))
        if len(shown) > MAX_ROWS:
            break
    print_table([text_label(name) for name in names], shown[:MAX_ROWS])
    if not shown:
        click.echo("no rows", err=True)
    if len(shown) > MAX_ROWS:
        click.echo(f"only the first {MAX_ROWS} rows are shown; --json, --csv and --parquet give all", err=True)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | dict):
        value = _json(value).decode()
    text = str(_plain(value))
    return fit(label(text) if name in TOKENS else text_label(text), MAX_WIDTH)
