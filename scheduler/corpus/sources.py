"""Where rows come from, each with its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from raylens.scheduler.corpus import csv_rows, jsonl, parquet, text
from raylens.scheduler.corpus.files import InputFile, find_files, first_byte
from raylens.scheduler.corpus.rows import BadRow, RowKeys
from raylens.scheduler.corpus.settings import CorpusSettings, Format
from raylens.scheduler.corpus.values import plain_row
from raylens.storage.errors import InputError

#: Rows with their number in their source.
Rows = Iterator[tuple[int, dict[str, Any]]] | Iterator[tuple[int, str]]

_EXTENSIONS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_UNREADABLE = (".bz2", ".xz", ".zip", ".7z", ".tar", ".tgz")


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that can be read any number of times.

    Attributes:
        prefix: of a row's place; the row's number follows.
        rows: starts reading.
    """

    prefix: str
    rows: Callable[[], Rows]

    def place(self, number: int) -> str:
        """Where a row is, for messages."""
        return f"{self.prefix}{number}"


def find_sources(settings: CorpusSettings, keys: RowKeys) -> list[Source]:
    """The files and texts of the settings.

    Raises:
        InputError: for a file that is not there or cannot be read.
        UsageError: for a file named twice.
    """
    sources = [_file_source(file, settings.format, keys) for file in find_files(settings.sources)]
    if settings.texts:
        sources.append(Source("--text ", lambda: enumerate(settings.texts, 1)))
    return sources


def _file_source(file: InputFile, wanted: Format, keys: RowKeys) -> Source:
    chosen = _format(file) if wanted == "auto" else wanted
    match chosen:
        case "jsonl":
            return Source(f"{file.name}:", partial(jsonl.rows, file))
        case "csv":
            return Source(f"{file.name}:", partial(csv_rows.rows, file, keys))
        case "parquet":
            return Source(f"{file.name} row ", partial(parquet.rows, file, keys))
        case "txt" | "lines" | "paragraphs":
            return Source(f"{file.name}:", partial(text.rows, file, chosen))
        case "auto":
            raise AssertionError("a file's format is never auto")
        case _:
            assert_never(chosen)


def _format(file: InputFile) -> Format:
    if file.spooled:
        return "jsonl" if first_byte(file) == b"{" else "txt"
    if file.extension in _UNREADABLE:
        raise InputError(file.name, f"{file.extension} files are not read", "decompress it, or compress it as .gz or .zst")
    return _EXTENSIONS.get(file.extension, "txt")


def row_source(rows: Iterable[str | Mapping[str, Any]]) -> Source:
    """Rows given as Python values: texts, or dictionaries as in JSON lines."""
    return Source("row ", partial(_python_rows, rows))


def _python_rows(rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            yield number, str.__str__(row)  # a plain string also of a subclass
        elif isinstance(row, Mapping):
            try:
                yield number, plain_row(row)
            except BadRow as bad:
                raise InputError(f"row {number}", bad.problem, bad.remedy) from None
        else:
            remedy = "decode it to a str" if isinstance(row, bytes | bytearray | memoryview) else "give texts or dictionaries"
            raise InputError(f"row {number}", f"a {type(row).__name__}, neither a string nor a dictionary", remedy)
