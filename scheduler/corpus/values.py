"""Values of Python, NumPy, torch and Arrow as values of JSON."""

import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from raylens.scheduler.corpus.rows import BadRow

_NULL = "use null instead, or drop the column"


def plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A new dictionary with the row's values as JSON has them: dates in ISO 8601, decimals as strings, arrays as lists.

    Raises:
        BadRow: naming the column whose value JSON cannot hold.
    """
    plain = {}
    for key, value in row.items():
        if not isinstance(key, str):
            raise BadRow(f"has the key {key!r}, which is not a string", "name every column by a string")
        try:
            plain[key] = _plain(value)
        except _NotJson as error:
            raise BadRow(f"column {key!r} holds {error}, which JSON cannot hold", error.remedy) from None
        except RecursionError:
            raise BadRow(f"column {key!r} is nested too deeply", "use at most 200 levels of lists and dictionaries") from None
    return plain


class _NotJson(Exception):
    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if _is_numbers(value):
        return _plain(value.tolist())
    return _plain_scalar(value)


def _is_numbers(value: Any) -> bool:
    """Whether it is a number or an array of numpy that Python has the like of, or a tensor."""
    module = type(value).__module__  # without the import of either
    if module == "numpy" and hasattr(value, "dtype"):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    return module == "torch" and hasattr(value, "tolist")


def _plain_scalar(value: Any) -> str | int | float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _NotJson(str(value), _NULL)
        return float(value)
    # Enumerations and NumPy's strings are subclasses; encoders take only the plain types.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, datetime.date | datetime.time):
        if value != value:  # pandas' NaT, a time that is missing
            raise _NotJson(str(value), _NULL)
        # Only pandas' times have them, and Arrow gives those where pandas is installed: the same file is refused everywhere.
        if getattr(value, "nanosecond", 0):
            raise _NotJson("a time in nanoseconds", "cast it to microseconds")
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise _NotJson("bytes", "decode or drop the column (in Arrow: cast it to string)")
    raise _NotJson(f"a {type(value).__name__}", "convert it to strings, numbers, lists or dictionaries, or drop the column")
