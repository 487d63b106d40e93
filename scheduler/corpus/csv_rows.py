"""CSV and TSV with a header row."""

import csv
from collections import Counter
from collections.abc import Iterator

from raylens.scheduler.corpus.files import ROW_LIMIT, InputFile, decode, lines, too_long
from raylens.scheduler.corpus.rows import RowKeys
from raylens.storage.errors import InputError


class _Lines:
    """Decoded lines for csv.reader, which joins those of a quoted field: counts the bytes of the row at hand."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self.row_start = 0
        self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in lines(self._file):
            if not self.row_bytes:
                self.row_start = number
            self.row_bytes += len(line)
            if self.row_bytes > ROW_LIMIT:
                raise too_long(f"{self._file.name}:{self.row_start}", "row")
            yield decode(self._file, number, line)


def rows(file: InputFile, keys: RowKeys) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows as dictionaries of strings, with the number of the line where each starts; empty lines are skipped.

    Raises:
        InputError: for a header without the columns wanted or with one twice, for a row with more or fewer fields than
            the header, and for broken quotes.
    """
    header: list[str] | None = None
    for number, fields in _fields(file):
        if header is None:
            header = fields
            _check_header(file, number, header, keys)
        elif len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            problem = f"{len(fields)} field{'s' * (len(fields) != 1)} where the header has {len(header)}"
            raise InputError(
                f"{file.name}:{number}", problem, "give every row one field per column, and quote fields with delimiters"
            )


def _fields(file: InputFile) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(ROW_LIMIT, csv.field_size_limit()))
    source = _Lines(file)
    # strict: an unclosed quote is an error, not a field that swallows the rest of the file.
    reader = csv.reader(source, delimiter="\t" if file.extension == ".tsv" else ",", strict=True)
    try:
        for fields in reader:
            if fields:
                yield source.row_start, fields
            source.row_bytes = 0
    except csv.Error as error:
        raise InputError(
            f"{file.name}:{source.row_start}",
            f"not valid CSV ({error})",
            'close every quote, write a quote in a field as "", and end lines with \\n',
        ) from None


def _check_header(file: InputFile, number: int, header: list[str], keys: RowKeys) -> None:
    place = f"{file.name}:{number}"
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(place, f"the header has column {twice[0]!r} twice", "give every column its own name")
    keys.check_columns(place, header)
