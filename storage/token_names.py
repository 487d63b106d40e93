"""Tokens by name: the exact bytes of a text, or ``id:`` and a number."""

from collections.abc import Iterable
from typing import Any

from raylens.storage.errors import UsageError, brief
from raylens.storage.labels import token_label
from raylens.storage.vocabulary import Vocabulary

#: Before the id of a token, and before the field of a prompt that names one.
ID, FIELD = "id:", "field:"
_SUGGESTED = 6
#: Digits of an id; more are none, and int() refuses some thousands.
MAX_DIGITS = 18


def token_ids(name: Any, vocabulary: Vocabulary, option: str = "token") -> list[int]:
    """The ids of the name. A text that several ids have the bytes of is all of them.

    Raises:
        UsageError: a text that no single token is, with tokens near it; an id outside the vocabulary.
    """
    number = str(name).removeprefix(ID)
    if (isinstance(name, int) or number != name) and number.isascii() and number.isdigit():
        if len(number) > MAX_DIGITS or int(number) >= len(vocabulary):
            raise UsageError(f"--{option} {ID}{number[:20]}: ids are from 0 to {len(vocabulary) - 1}")
        return [int(number)]
    if not isinstance(name, str):
        raise UsageError(f"--{option} {brief(name)}: a token is named by its text or its id")
    data = name.encode(errors="surrogateescape")
    found = [number for number, token in enumerate(vocabulary) if token == data]
    if not found:
        near = ", ".join(f"{token_label(vocabulary, number)} (id:{number})" for number in _near(data, vocabulary))
        raise UsageError(
            f"--{option} {brief(name, repr)}: no single token of this run; similar ones are {near or 'none'}; "
            "a leading space counts"
        )
    return found


def _near(data: bytes, vocabulary: Vocabulary) -> Iterable[int]:
    """Ids of the tokens that differ in blanks and case only, then of those that the text begins with, longest first."""
    bare = data.strip().lower()
    same, begins = [], []
    for number, token in enumerate(vocabulary):
        word = (token or b"").strip().lower()
        if word and word == bare:
            same.append(number)
        elif word and bare.startswith(word):
            begins.append((-len(word), token != data[: len(token or b"")], number))
    return [*same, *(number for *_, number in sorted(begins))][:_SUGGESTED]
