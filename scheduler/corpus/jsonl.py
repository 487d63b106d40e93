"""JSON lines: an object a line."""

from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

from raylens.scheduler.corpus.files import InputFile, decode, first_byte, is_blank, lines
from raylens.storage.errors import InputError

# msgspec reads integers of any size as they are, where orjson makes inexact floats of large ones.
_DECODER = msgspec.json.Decoder(dict[str, Any])


def rows(file: InputFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects with their line numbers; blank lines are skipped.

    Raises:
        InputError: for a line that is not a JSON object in UTF-8, and for a file that is one array.
    """
    if first_byte(file) == b"[":
        raise InputError(
            file.name, "a JSON array, not one object per line", "convert it to one object per line (jq -c '.[]' does that)"
        )
    parse = _DECODER.decode
    for number, line in lines(file):
        try:
            row = parse(line)
        except (ValueError, RecursionError) as error:
            if is_blank(line):
                continue
            raise _bad_line(file, number, line, error) from None
        yield number, row


def _bad_line(file: InputFile, number: int, line: bytes, error: Exception) -> InputError:
    decode(file, number, line)
    place = f"{file.name}:{number}"
    if isinstance(error, msgspec.ValidationError) and str(error).startswith("Expected `object`"):
        return InputError(place, "not a JSON object", "write one object per line")
    reason = str(error)
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as better:
        # It knows the column, and tells a lone surrogate from a line cut short.
        reason = f"{better.msg} at column {better.colno}"
    if "surrogate" in reason:
        return InputError(
            place, f"half of a \\ud800-\\udfff escape pair ({reason})", "write both halves, or the character itself"
        )
    return InputError(place, f"not valid JSON ({reason})", "write one JSON object per line")
