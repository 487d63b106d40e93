"""The result of a query. The query runs when its result is read, and again each time."""

import atexit
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import pyarrow as pa

from raylens.storage.arguments import arguments
from raylens.storage.database import Database, LeftOut
from raylens.storage.dataframes import DataFrames, to_xarray
from raylens.storage.errors import StoreError, UsageError
from raylens.storage.named_queries import named_query
from raylens.storage.python_values import plain
from raylens.storage.run import Run
from raylens.storage.selection import options_of, select

if TYPE_CHECKING:
    import xarray as xr

#: Given the database, the statement and its parameters.
Prepared = Callable[[Database], tuple[str, Mapping[str, Any]]]

#: What is being read. The rest of it is closed at exit, for DuckDB lists on stderr what a script's variables still hold then.
_READING: WeakSet[Generator[pa.RecordBatch]] = WeakSet()


@atexit.register
def _close() -> None:
    for reading in list(_READING):
        with suppress(ValueError):  # a thread is at it
            reading.close()


class Result(DataFrames):
    """The rows of a query.

    The query runs when the result is read, and again each time. Rows need not fit in memory: iteration and ``batches`` read
    them as they are computed. ``rows``, ``to_arrow``, ``to_pandas``, ``to_polars`` and ``to_xarray`` read all of them.

    Args:
        asked: the query in words, for ``repr``.
        hidden: a column to leave out of the rows.
        left_out: as for ``Database``.

    Raises:
        UsageError: when it is read, if the statement is not valid or asks for what the runs lack.
        StoreError: when it is read, if tables are missing or damaged.
    """

    def __init__(
        self, runs: Sequence[Run], prepare: Prepared, asked: str, hidden: str | None = None, left_out: LeftOut | None = None
    ) -> None:
        self._runs, self._prepare, self._asked, self._hidden, self._left_out = runs, prepare, asked, hidden, left_out

    def __repr__(self) -> str:
        runs = ", ".join(repr(run.name) for run in self._runs)
        return (
            f"<Result of {self._asked} over {runs}: read by a loop, rows(), to_pandas(), to_polars(), to_arrow() or to_xarray()>"
        )

    @contextmanager
    def reader(self) -> Iterator[pa.RecordBatchReader]:
        """A reader of the schema and the batches.

        Raises:
            UsageError: the statement is not valid, or asks for what the runs lack.
            StoreError: tables are missing or damaged.
        """
        with Database(self._runs, self._left_out) as database:
            sql, parameters = self._prepare(database)
            try:
                with database.query(sql, parameters, self._hidden) as reader:
                    yield reader
            except StoreError as error:
                raise _named(error, database.runs, sql, parameters) from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, some thousands at a time, as Arrow record batches."""
        reading = self._batches()
        _READING.add(reading)
        return reading

    def _batches(self) -> Generator[pa.RecordBatch]:
        with arguments(), self.reader() as reader:
            yield from reader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches():
            yield from batch.to_pylist()

    def rows(self) -> list[dict[str, Any]]:
        """All rows, each a dictionary of values by column."""
        return list(self)

    def to_arrow(self) -> pa.Table:
        """All rows as one Arrow table."""
        with arguments(), self.reader() as reader:
            return reader.read_all()

    def to_xarray(self, *axes: str) -> "xr.Dataset":
        """All rows as a dataset with some columns as axes, such as ``run.query("layers").to_xarray("tap", "layer")``.

        Args:
            axes: columns that together identify a row; without any, rows are numbered along ``row``.

        Raises:
            UsageError: xarray is not installed, there is no such column, or two rows have the same values of the axes.
        """
        return to_xarray(self.to_arrow(), axes)


def _named(error: StoreError, runs: Sequence[Run], sql: str, parameters: Mapping[str, Any]) -> StoreError:
    """DuckDB seldom says which of many files it could not read; each run asked by itself tells whose it is."""
    if len(runs) == 1 or any(str(run.folder.root) in str(error) for run in runs):
        return error
    damaged = [run.name for run in runs if not _answers(run, sql, parameters)]
    return StoreError(f"{error}; it is a table of {', '.join(damaged)}: query other runs one by one") if damaged else error


def _answers(run: Run, sql: str, parameters: Mapping[str, Any]) -> bool:
    try:
        with Database([run]) as database, database.query(sql, parameters) as reader:
            deque(reader, maxlen=0)
    except StoreError:
        return False
    except UsageError:  # the statement may need all the runs
        return True
    return True


def run_query(run: Run, name: str, options: Mapping[str, Any]) -> Result:
    """A named query over one run; ``Run.query``.

    Raises:
        UsageError: there is no such query, or it takes no such option.
    """
    query = named_query(name)
    options = {name: plain(value, f"--{name}") for name, value in options.items()}
    options_of(query, options)

    def prepare(database: Database) -> tuple[str, Mapping[str, Any]]:
        return query.sql, select(run, database, query, options)

    return Result([run], prepare, f"query {name!r}", _hidden(options))


def ask(run: Run, database: Database, name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All rows of a named query over one run, whose tables are open already: opening them takes longer than most queries.

    Raises:
        UsageError, StoreError: as ``Result.reader``.
    """
    query = named_query(name)
    return database.rows(query.sql, select(run, database, query, options), _hidden(options))


def _hidden(options: Mapping[str, Any]) -> str | None:
    return None if "by" in options else "split"


def sql_query(
    runs: Sequence[Run], sql: str, parameters: Mapping[str, Any] | None = None, left_out: LeftOut | None = None
) -> Result:
    """A statement over the views of some runs; ``Run.sql`` and ``Store.sql``.

    Args:
        left_out: as of ``Database``.
    """
    values = {name: plain(value, f"${name}") for name, value in (parameters or {}).items()}
    return Result(runs, lambda _: (sql, values), f"{shorten(sql, 100)!r}", left_out=left_out)
