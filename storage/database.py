"""SQL over the tables of runs: documented views, read-only, without files or network (docs/QUERIES.md).

DuckDB reads the Parquet tables where they are; nothing is imported, and a query may be over more than fits in memory.
"""

import itertools
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from raylens.storage.errors import StoreError, UsageError, one_line
from raylens.storage.paths import is_text
from raylens.storage.run import Run
from raylens.storage.table_files import REMEDY, Extent, as_glob, read_parquet, table_files, text_literal
from raylens.storage.tables import KINDS, LENS, PROMPTS, TableFiles
from raylens.storage.temporary import temporary
from raylens.storage.token_table import TokenTable

T = TypeVar("T")
#: Told the name of a run that cannot be read, and why.
LeftOut = Callable[[str, StoreError], None]
#: The files of a run, each with what its kinds hold.
Files = Mapping[TableFiles, Mapping[str, Extent]]

#: Environment variable with DuckDB's limit of memory, such as ``2GB``; by default four fifths of the machine's. What does not fit
#: goes to a temporary folder.
MEMORY = "RAYLENS_SQL_MEMORY"

#: A name in SQL is never a Python variable of whoever calls, and what DuckDB has only in an extension is not there.
_SETTINGS = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
#: Seconds between two requests to end a statement.
_ASK_AGAIN = 0.1
#: Makes the documented views.
VIEWS = Path(__file__).with_name("views.sql")
_KINDS = {"lens": ("lens", LENS), "prompts": ("prompt_rows", PROMPTS)}


class Database:
    """The views of some runs, as they were committed when it was opened.

    Args:
        runs: one or more.
        left_out: told of each run that cannot be read, and why; the others are asked without it. By default it is an error.

    Attributes:
        runs: those that have anything to ask of.

    Raises:
        StoreError: tables or a vocabulary are missing or damaged, if ``left_out`` is not given or no run can be read.
        UsageError: there are no runs, or the limit of memory is not a size.
        RaylensError: there is no temporary folder.
    """

    def __init__(self, runs: Sequence[Run], left_out: LeftOut | None = None) -> None:
        self._left_out = left_out
        self._thread = ThreadPoolExecutor(1, "sql")
        self._thread.submit(int).result()  # begun before there is work, or an interrupt meanwhile would leave it at that
        self._temporary = temporary(tempfile.TemporaryDirectory, prefix="raylens-sql-")
        self._connection = duckdb.connect(config={"temp_directory": self._temporary.name, **_SETTINGS})
        try:
            self._limit_memory()
            self._open(runs)
        except BaseException:
            self.close()
            raise

    def _limit_memory(self) -> None:
        memory = os.environ.get(MEMORY)
        if memory is None:
            return
        try:
            self._execute("SET memory_limit = ?", [memory])
        except duckdb.Error as error:
            raise UsageError(f"{MEMORY}={memory}: {one_line(error)}; give a size such as 2GB") from error

    def _open(self, runs: Sequence[Run]) -> None:
        if not runs:
            raise UsageError("there are no runs to query")
        if len({run.name for run in runs}) < len(runs):  # of several stores
            raise UsageError("two of the runs have one name, by which queries tell them apart; compare runs of different names")
        tokens = TokenTable()
        found = self._readable(runs, tokens)
        try:
            self._create_views(found, tokens)
        except duckdb.Error as error:  # a table whose ends are right, but not what lies between; or it is gone by now
            damaged = [run for run, files in found.items() if not self._reads(run, *files)] or found
            raise StoreError(f"tables of {', '.join(damaged)} cannot be read ({one_line(error)}); {REMEDY}") from error
        self.runs = [run for run in runs if run.name in found]
        self._paths = [files.path(kind) for _, run_files in found.values() for files in run_files for kind in KINDS]
        self._execute("SET allowed_paths = ?", [[form for path in self._paths for form in (str(path), as_glob(path))]])
        for setting in ("enable_external_access = false", "lock_configuration = true"):
            self._execute(f"SET {setting}")

    def _create_views(self, found: Mapping[str, tuple[int, Files]], tokens: TokenTable) -> None:
        for kind in KINDS:
            name, schema = _KINDS[kind]
            parts = itertools.chain.from_iterable(_selects(run, kind, *files) for run, files in found.items())
            self._execute(f"CREATE VIEW {name} AS {' UNION ALL BY NAME '.join([_empty(schema), *parts])}")
        self._ask(lambda: self._connection.register("tokens", tokens))
        self._execute(VIEWS.read_text())

    def _reads(self, run: str, vocabulary: int, files: Files) -> bool:
        """Whether DuckDB can open the tables of a run."""
        try:
            for select in (select for kind in KINDS for select in _selects(run, kind, vocabulary, files)):
                self._execute(f"{select} LIMIT 0")
        except duckdb.Error:
            return False
        return True

    def _readable(self, runs: Sequence[Run], tokens: TokenTable) -> dict[str, tuple[int, Files]]:
        """Run -> which vocabulary is its, and its files; of runs that have any."""
        found: dict[str, tuple[int, Files]] = {}
        problems: list[str] = []
        for run in runs:
            try:
                if files := table_files(run.folder, run.manifest.uid):  # one that has only begun may lack its vocabulary too
                    found[run.name] = (tokens.add(run), files)
            except StoreError as error:
                if self._left_out is None:
                    raise
                self._left_out(run.name, error)
                problems.append(str(error))
        if len(problems) == len(runs):
            raise StoreError("; ".join(problems))
        return found

    @contextmanager
    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, hidden: str | None = None
    ) -> Iterator[pa.RecordBatchReader]:
        """The result of one statement, read as it is made.

        Args:
            hidden: a column of the result that is left out.

        Raises:
            UsageError: SQL that is not a query, or not valid; with DuckDB's own words. Also while the result is read.
            StoreError: a table was damaged or removed meanwhile; also while the result is read.
        """
        if not is_text(sql):
            raise UsageError(f"SQL: {sql[:80]!r} is not UTF-8; write other bytes of a text with chr()")
        try:
            statements = self._connection.extract_statements(sql)
            # EXPLAIN is not among them, for EXPLAIN ANALYZE runs what it explains, a COPY over a table too.
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                allowed = "SELECT (or FROM, DESCRIBE, SHOW, SUMMARIZE, or PIVOT with IN)"
                raise UsageError(f"SQL: give one {allowed} statement; the store is read-only")
            reader = self._ask(
                lambda: self._connection.sql(sql, params=dict(parameters) if parameters else None).to_arrow_reader()
            )
        except duckdb.Error as error:
            raise self._failed(str(error)) from error
        fields = [field for field in reader.schema if field.name != hidden]
        schema = pa.schema([field.with_name(name) for field, name in zip(fields, _apart(fields), strict=True)])
        kept = [number for number, field in enumerate(reader.schema) if field.name != hidden]
        batches = self._batches(reader, kept, schema)
        try:
            yield pa.RecordBatchReader.from_batches(schema, batches)
        finally:
            batches.close()

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None, hidden: str | None = None) -> list[dict[str, Any]]:
        """All rows of one statement; as ``query``, also what it raises."""
        with self.query(sql, parameters, hidden) as reader:
            found: list[dict[str, Any]] = reader.read_all().to_pylist()
            return found

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """A statement of raylens's own. In this thread a Ctrl-C would come as an error of DuckDB's."""
        self._ask(lambda: self._connection.execute(sql, parameters))

    def _ask(self, call: Callable[[], T]) -> T:
        """What a call of DuckDB gives, made in a thread of its own: a Ctrl-C reaches this one, and ends the statement."""
        asked = self._thread.submit(call)
        try:
            return asked.result()
        except BaseException:
            while not asked.done():  # again, for what it is doing between two of its steps it does not hear
                self._connection.interrupt()
                wait([asked], _ASK_AGAIN)
            raise

    def define(self, name: str, select: str) -> None:
        """Make or replace a view; of raylens's own SQL only.

        Raises:
            StoreError: a table was damaged or removed meanwhile.
        """
        try:
            self._execute(f"CREATE OR REPLACE VIEW {name} AS {select}")
        except duckdb.Error as error:
            raise self._failed(str(error)) from error

    def _batches(self, reader: pa.RecordBatchReader, kept: list[int], schema: pa.Schema) -> Generator[pa.RecordBatch]:
        while True:
            try:
                batch = self._ask(lambda: next(reader, None))
            except (OSError, pa.ArrowException) as error:  # Arrow's stream has no kinds of its own for DuckDB's errors
                raise self._failed(str(error)) from error
            if batch is None:
                return
            yield pa.RecordBatch.from_arrays([batch.column(number) for number in kept], schema=schema)

    def _failed(self, problem: str) -> UsageError | StoreError:
        kind, named, _ = problem.partition(" Error: ")
        unreadable = not named or kind in _UNREADABLE
        # DuckDB takes a file that is gone for a folder, which it may not read, so its words alone do not tell
        # and some kinds of damage for a wrong argument
        if unreadable or any(str(path) in problem or not path.exists() for path in self._paths):
            return StoreError(
                f"SQL: {problem}; ask again if the run was just compacted; raylens verify STORE names a damaged file"
            )
        if problem.startswith("Out of Memory Error"):
            more = f"set {MEMORY} to more" if MEMORY in os.environ else "use a machine with more memory"
            return UsageError(f"SQL: {problem.splitlines()[0]}; ask for less, or {more}")
        return UsageError(f"SQL: {problem}")

    def close(self) -> None:
        """Give back memory and the temporary folder."""
        self._thread.shutdown()
        self._connection.close()
        self._temporary.cleanup()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: Kinds of DuckDB's errors that are about a file, as are those of no kind; others are about the statement.
_UNREADABLE = frozenset({"IO", "Invalid", "Serialization", "Internal", "TransactionContext"})


def _apart(fields: Sequence[pa.Field]) -> list[str]:
    """The names of columns, each its own: a join has two of one name, and rows are dictionaries."""
    names: list[str] = []
    for field in fields:
        tries = itertools.chain([field.name], (f"{field.name}_{number}" for number in itertools.count(1)))
        names.append(next(name for name in tries if name not in names))
    return names


def _empty(schema: pa.Schema) -> str:
    """No row, of all columns: tables that were written before a column was have nulls there."""
    columns = ", ".join(f"NULL::{_TYPES[field.type]} AS {field.name}" for field in schema)
    return f"SELECT NULL::VARCHAR AS run, NULL::UINTEGER AS vocabulary, {columns} WHERE false"


def _selects(run: str, kind: str, vocabulary: int, found: Files) -> list[str]:
    """All rows of a run, from files of the same columns together: older ones may have fewer."""
    alike: dict[tuple[str, ...], list[TableFiles]] = defaultdict(list)
    for files, extents in found.items():
        alike[extents[kind].columns].append(files)
    tables = [
        read_parquet([files.path(kind) for files in group], sum(found[files][kind].rows for files in group))
        for group in alike.values()
    ]
    columns = f"{text_literal(run)} AS run, {vocabulary}::UINTEGER AS vocabulary, *"
    return [f"SELECT {columns} FROM {table}" for table in tables]  # noqa: S608  quoted


_TYPES = {
    pa.string(): "VARCHAR",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.float32(): "FLOAT",
    LENS.field("ids").type: "UINTEGER[]",
    LENS.field("logprobs").type: "FLOAT[]",
}
