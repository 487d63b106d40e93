"""Which table files hold what is committed, and whether they are what they should be."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raylens.storage.durable import store_errors
from raylens.storage.errors import OtherFormat, StoreError, one_line
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.record import Failure, Record
from raylens.storage.segments import first_commit, segment_path, segment_stem
from raylens.storage.tables import ABOUT, FORMAT, KINDS, LATER, About, TableFiles, lens_table, prompts_table

#: How tables are mended: they hold nothing that the records do not.
REMEDY = "raylens verify STORE --repair makes what is damaged again from the records"
#: Bytes that the pages of a table may declare above twice what its rows take in memory.
SLACK = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """What the end of a file says that it holds.

    Attributes:
        columns: their paths, such as ``ids.list.element``.
    """

    columns: tuple[str, ...]
    rows: int


def _check(files: TableFiles, run: str) -> dict[str, Extent]:
    """What the file of each kind holds; one that is damaged, or of another run, place or version is refused. Reads the ends.

    Args:
        run: uid of the run.

    Raises:
        StoreError: naming the file, the reason and the remedy.
    """
    found = {}
    for kind in KINDS:
        try:
            found[kind] = _extent(_check_about(files.path(kind), files.about(run, kind)))
        except OtherFormat as error:
            raise OtherFormat(f"{files.path(kind)}: {error}; use the raylens that wrote it") from error
        except StoreError as error:
            raise StoreError(f"{files.path(kind)}: {error}; {REMEDY}") from error
    return found


def compare(files: TableFiles, run: str, outcomes: list[Record | Failure]) -> dict[str, str]:
    """Kind -> what is wrong with that file, given the outcomes of the segment; empty where both hold just these.

    Raises:
        OtherFormat: another raylens wrote a table.
    """
    expected = {"lens": lens_table(one for one in outcomes if isinstance(one, Record)), "prompts": prompts_table(outcomes)}
    problems = {}
    for kind, table in expected.items():
        try:
            _check_rows(files.path(kind), files.about(run, kind), table)
        except OtherFormat:
            raise
        except StoreError as error:
            problems[kind] = str(error)
    return problems


def _check_about(path: Path, expected: About) -> pq.FileMetaData:
    """The metadata of a table that is what it should be; errors name the reason only."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise StoreError("damaged table (no file)")
    try:
        metadata = pq.read_metadata(path)
        found = msgspec.json.decode((metadata.metadata or {}).get(ABOUT.encode(), b"nothing"), type=About)
    except (OSError, pa.ArrowException, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"damaged table ({one_line(error)})") from error
    if found.format != FORMAT:
        raise OtherFormat(f"table of format {found.format}; this raylens reads format {FORMAT}")
    if found != expected:
        raise StoreError(f"{found.kind} table of run {found.run}, commits {found.first} to {found.last}, not its own")
    return metadata


def _extent(metadata: pq.FileMetaData) -> Extent:
    try:
        return Extent(tuple(metadata.schema.column(at).path for at in range(len(metadata.schema))), metadata.num_rows)
    except ValueError as error:  # a name cannot be read
        raise StoreError(f"damaged table ({one_line(error)})") from error


def _check_rows(path: Path, about: About, expected: pa.Table) -> None:
    metadata = _check_about(path, about)
    if metadata.num_rows != expected.num_rows:
        raise StoreError(f"{metadata.num_rows} rows, the records give {expected.num_rows}")
    declared = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if declared > 2 * expected.nbytes + SLACK:  # before any of it is read
        raise StoreError(f"declares {declared} bytes, the records give {expected.nbytes}")
    try:
        found = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException, MemoryError) as error:
        raise StoreError(f"damaged table ({one_line(error)})") from error
    expected = _as_written(expected, found.schema.names)
    if found.schema.names != expected.schema.names or not found.equals(expected):
        raise StoreError("its rows are not what the records give")
    try:
        _check_statistics(metadata, found)
    except (ValueError, OverflowError, pa.ArrowException) as error:  # a name or number in it cannot be read
        raise StoreError(f"damaged table ({one_line(error)})") from error
    _check_in_duckdb(path, expected)


def _as_written(expected: pa.Table, names: list[str]) -> pa.Table:
    """The rows as a raylens wrote them that knew fewer columns, in which these hold nothing."""
    return expected.drop(
        [name for name in LATER & set(expected.column_names) - set(names) if expected[name].null_count == len(expected)]
    )


def _check_statistics(metadata: pq.FileMetaData, table: pa.Table) -> None:
    """Refuse extremes that are not those of the rows: a query passes over row groups by them."""
    start, names = 0, {metadata.schema.column(at).path for at in range(len(metadata.schema))}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = table.slice(start, group.num_rows)
        start += group.num_rows
        for column in (group.column(at) for at in range(group.num_columns)):
            if column.path_in_schema not in names:
                raise StoreError(f"has a column {column.path_in_schema}")
            if column.path_in_schema not in table.schema.names or not column.is_stats_set:  # the values of lists have no use
                continue
            values, stated = rows[column.path_in_schema], column.statistics
            extremes = pc.min_max(values)
            right = {"min": stated.min, "max": stated.max} == extremes.as_py() if stated.has_min_max else True
            if not right or (stated.has_null_count and stated.null_count != values.null_count):
                raise StoreError(f"its statistics of {column.path_in_schema} are not those of its rows")
    if start != len(table):
        raise StoreError("its row groups do not add up")


@cache
def _duckdb() -> duckdb.DuckDBPyConnection:
    """One for all tables: opening it takes longer than reading a small one."""
    return duckdb.connect(config={"python_enable_replacements": "false"})


def _check_in_duckdb(path: Path, expected: pa.Table) -> None:
    """Refuse what DuckDB, which queries read it with, reads otherwise than Arrow."""
    # the types too: the hash of a text is that of its bytes
    sql = "SELECT count(*), bit_xor(hash(row)), any_value(typeof(row)) FROM {} AS row"
    with _duckdb().cursor() as connection:
        connection.register("expected", expected)
        try:
            found = connection.execute(sql.format(read_parquet([path], len(expected)))).fetchone()
        except duckdb.Error as error:
            raise StoreError(f"damaged table ({one_line(error)})") from error
        if found != connection.execute(sql.format("expected")).fetchone():
            raise StoreError("DuckDB reads other rows than the records give")


def read_parquet(paths: list[Path], rows: int) -> str:
    """Files of the same columns as one table in SQL; no character of a path stands for others.

    Args:
        rows: of all files, which decides how tables are joined.
    """
    listed = ", ".join(text_literal(as_glob(path)) for path in paths)
    # By union_by_name each file would be opened again wherever a view names the table, for columns and rows that are known
    return f"read_parquet([{listed}], hive_partitioning = false, explicit_cardinality = {rows})"


def text_literal(value: str) -> str:
    """A text as SQL."""
    return "'" + value.replace("'", "''") + "'"


def as_glob(path: Path) -> str:
    """A pattern that fits this path only."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))


def files_of(folder: RunFolder, commit: Commit) -> TableFiles:
    """The tables of the segment that a commit names.

    Raises:
        StoreError: the commit names no segment of the run's records folder.
    """
    return TableFiles(folder, segment_stem(segment_path(folder, commit).name), first_commit(commit), commit.n)


def table_files(folder: RunFolder, run: str) -> dict[TableFiles, dict[str, Extent]]:
    """The files that together hold every committed record once, in order of commits, each with what its kinds hold.

    Args:
        folder: of the run.
        run: its uid.

    Raises:
        StoreError: the ledger is damaged; tables are missing, damaged or not of this run.
    """
    found = _committed(folder)
    while True:
        try:
            with store_errors(folder.tables):
                return _checked(folder, run, found)
        except StoreError:
            before, found = found, _committed(folder)
            if found == before:
                raise
            # a compaction has removed some since their names were read


def _checked(folder: RunFolder, run: str, found: list[TableFiles]) -> dict[TableFiles, dict[str, Extent]]:
    missing = [one for one in found if not one.exist()]
    if missing:
        raise StoreError(
            f"{folder.tables}: no tables for {len(missing)} of {len(found)} segments, such as {missing[0].stem}; "
            "raylens verify STORE --repair makes them from the records"
        )
    return {files: _check(files, run) for files in found}


def _committed(folder: RunFolder) -> list[TableFiles]:
    ledger = Ledger(folder)
    found: list[TableFiles] = []
    for commit in ledger.follow():
        if commit.segment is not None:
            files = files_of(folder, commit)
            while found and found[-1].first >= files.first:  # what it was merged from, of a compaction that was killed
                found.pop()
            found.append(files)
    ledger.check_whole()
    return found
