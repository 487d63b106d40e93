"""What a caller from Python gives as plain values: numbers and arrays of numpy, torch and the like, none of which is imported."""

from collections.abc import Mapping
from typing import Any

import msgspec

from raylens.storage.errors import UsageError


def plain(value: Any, option: str) -> Any:
    """A number of another library as one of Python, an array as a list; of lists and dictionaries what is in them likewise.

    What is nothing of that kind stays as it is; whoever takes the value says what is wrong with it.

    Args:
        option: that was given it, for the message.

    Raises:
        UsageError: an integer that no option takes, which Python may not even be able to write.
    """
    if isinstance(value, Mapping):
        return {key: plain(item, option) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, option) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, int) and value.bit_length() > 64:
        raise UsageError(f"{option}: a number of more than 64 bits; give a smaller one")
    if not hasattr(value, "tolist") or isinstance(value, type):
        return value
    try:
        found = value.tolist()
    except Exception:  # noqa: BLE001  sparse tensors, and those of no device, have none
        return value
    return plain(found, option) if isinstance(found, list | int) else found


class Settings(msgspec.Struct, frozen=True):
    """Settings that a caller from Python may give as values of other libraries; they are held as plain ones."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            given = getattr(self, name)
            value = plain(given, name)
            if value is not given:
                msgspec.structs.force_setattr(self, name, value)
