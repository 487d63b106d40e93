"""Values of JSON that not every reader of it can hold: a file of a store may be anybody's, and is printed as JSON again."""

from typing import Any

import orjson


def unheld(value: Any) -> str | None:
    """What of it, in words: an integer over 64 bits, more than some 250 levels; None if there is nothing."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        return str(error)
    return None
