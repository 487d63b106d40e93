"""One row as one prompt: which key holds the prompt, which the id, and whether the values are right."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import orjson

from raylens.scheduler.corpus.files import ROW_LIMIT
from raylens.storage.errors import InputError
from raylens.storage.record import ID_LIMIT, Metadata, Prompt

#: Keys that hold the text when none is named; the first that a row has.
TEXT_KEYS = ("text", "prompt", "content", "question", "input")

_LISTED = 20
_STORABLE = "use strings, 64-bit integers, floats, and at most 200 levels of lists and objects"
_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class BadRow(Exception):
    """What is wrong with a row; whoever knows its place makes an InputError of it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class RowKeys:
    """Makes prompts of rows.

    Attributes:
        column: the key of the prompt, or None for the first of TEXT_KEYS.
        id_column: the key of the id, or None for ``id`` where a row has it.
    """

    column: str | None = None
    id_column: str | None = None

    def check_columns(self, place: str, names: Collection[str]) -> None:
        """Raise InputError at ``place`` if a table with these columns cannot give prompts."""
        try:
            self._content_key(names)
            if self.id_column is not None and self.id_column not in names:
                raise _missing((self.id_column,), names, "--id-column")
        except BadRow as bad:
            raise InputError(place, bad.problem, bad.remedy) from None

    def prompt(self, row: dict[str, Any] | str, index: int) -> Prompt:
        """The prompt of a row, a dictionary or the text itself; the row is left as it is.

        Raises:
            BadRow: if the row is not a prompt.
        """
        if isinstance(row, str):
            prompt = Prompt(index, str(index), row)
            _check_storable(prompt)
            return prompt
        metadata = dict(row)
        key = self._content_key(metadata)
        content = metadata.pop(key)
        name = self._id(metadata, index)
        if key == "messages":
            prompt = Prompt(index, name, None, _messages(content), None, metadata)
        elif key == "token_ids":
            prompt = Prompt(index, name, None, None, _token_ids(content), metadata)
        elif isinstance(content, str):
            prompt = Prompt(index, name, content, None, None, metadata)
        else:
            raise BadRow(f"{key!r} is {_kind(content)}, not a string", "give every row a string, or name another column")
        _check_storable(prompt)
        return prompt

    def _content_key(self, names: Collection[str]) -> str:
        if self.column is not None and self.column in names:
            return self.column
        keys = [key for key in ("messages", "token_ids") if key in names]
        for key in TEXT_KEYS if self.column is None else ():
            if key in names:
                keys.insert(0, key)
                break
        if len(keys) == 1:
            return keys[0]
        if keys:
            listed = " and ".join(repr(key) for key in keys)
            raise BadRow(f"holds {listed}, and only one can be the prompt", "choose it with --column, or remove the others")
        raise _missing((self.column,) if self.column is not None else TEXT_KEYS, names, "--column")

    def _id(self, metadata: Metadata, index: int) -> str:
        key = self.id_column or "id"
        if key not in metadata:
            if self.id_column is not None:
                raise _missing((key,), metadata, "--id-column")
            return str(index)
        value = metadata.pop(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = _digits(value, key)
        if not isinstance(value, str):
            raise BadRow(f"{key!r} is {_kind(value)}, not a string or an integer", "give every row an id of its own")
        if not value:
            raise BadRow(f"{key!r} is an empty string", "give every row an id of its own")
        if len(value) > ID_LIMIT:
            raise BadRow(f"{key!r} has {len(value):,} characters", f"use at most {ID_LIMIT:,}")
        return value


def _digits(value: int, key: str) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        raise BadRow(f"{key!r} holds a number of thousands of digits", f"use at most {ID_LIMIT:,}") from None


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _missing(wanted: tuple[str, ...], names: Collection[str], option: str) -> BadRow:
    listed = ", ".join(repr(name) for name in list(names)[:_LISTED]) or "none"
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    close = [match for key in wanted for match in difflib.get_close_matches(key, names, 1)]
    guess = f"did you mean {close[0]!r}? " if close else ""
    wanted_listed = " or ".join(repr(key) for key in wanted)
    only = next(iter(names), "")
    if len(names) == 1 and any(other in only for other in ";\t|"):
        return BadRow(f"no column {wanted_listed} (its only column: {only!r})", "write commas between columns")
    return BadRow(f"no column {wanted_listed} (its columns: {listed}{more})", f"{guess}name the right one with {option}")


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadRow(f"'messages' is {_kind(value)}, not a list", "write a list of objects with role and content")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise BadRow(f"message {number} is {_kind(message)}, not an object", "write a list of objects with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadRow(f"message {number} has no string {key!r}", "give every message a role and a content, both strings")
    return value


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise BadRow(f"'token_ids' is {_kind(value)}, not a list", "write a list of integers from 0")
    for position, token in enumerate(value):
        if type(token) is not int or token < 0:
            shown = _digits(token, "token_ids") if type(token) is int else str(token)
            raise BadRow(f"'token_ids' holds {shown[:40]} at position {position}", "write a list of integers from 0")
    return value


def _check_storable(prompt: Prompt) -> None:
    """Refuse now what the store's JSON could not hold at the end of a run."""
    content = {"id": prompt.id, "text": prompt.text, "messages": prompt.messages, "token_ids": prompt.token_ids}
    try:
        size = len(orjson.dumps((content, prompt.metadata)))
    except TypeError:
        raise _unstorable([*content.items(), *prompt.metadata.items()]) from None
    if size > ROW_LIMIT:
        raise BadRow(f"a row longer than {ROW_LIMIT >> 20} MiB", "split it")


def _unstorable(fields: list[tuple[str, Any]]) -> BadRow:
    for name, value in fields:
        try:
            orjson.dumps({name: value})
        except TypeError as error:
            if "surrogates" in str(error):
                return BadRow(f"{name!r} holds half of a surrogate pair", "write the whole character, or remove it")
            return BadRow(f"{name!r} cannot be stored ({error})", _STORABLE)
    return BadRow("the row is nested too deeply", _STORABLE)
