"""Which tokens ``--track`` names, in all prompts or in each its own."""

from collections.abc import Sequence
from typing import Any

from raylens.storage.errors import UsageError, brief
from raylens.storage.labels import token_label
from raylens.storage.python_values import plain
from raylens.storage.record import Metadata
from raylens.storage.token_names import FIELD, ID, MAX_DIGITS
from raylens.storage.vocabulary import Vocabulary


def track_names(asked: str | int | Sequence[str | int]) -> tuple[str, ...]:
    """What ``--track`` would be given: one token or several, by text or id.

    Raises:
        UsageError: one is neither.
    """
    given = plain(asked, "--track")
    each = [given] if isinstance(given, str | bytes) or not isinstance(given, Sequence) else given
    return tuple(token if isinstance(token, str) else f"{ID}{_number(token)}" for token in each)


def _number(token: object) -> int:
    if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
        return token
    raise UsageError(f"--track {brief(token, repr)}: is no token; give its text, or its id as a number from 0")


def tracked_fields(names: Sequence[str]) -> list[str]:
    """The fields of prompts that ``--track field:NAME`` names."""
    return [name.removeprefix(FIELD) for name in names if name.startswith(FIELD)]


class Tracked:
    """The tokens to track in each prompt.

    A text names the one token it is to the tokenizer, or the one whose bytes it is: a leading space counts. Tokens that no
    text names alone are named by ``id:`` and their number; ``field:`` and a name stand for what the prompt's own field of
    that name holds, such a text or a number.

    Args:
        names: what ``--track`` was given; one given twice counts once.

    Raises:
        UsageError: no token or several are named; with the tokens the text comes to.
    """

    def __init__(self, names: Sequence[str], tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._ids: dict[bytes, list[int]] | None = None
        self._named = {name: None if name.startswith(FIELD) else self._id(name, f"--track {brief(name, repr)}") for name in names}

    def __len__(self) -> int:
        return len(self._named)

    def of(self, metadata: Metadata) -> tuple[int, ...]:
        """The ids in a prompt with these fields, in the order of the names.

        Raises:
            UsageError: it lacks a field, or a field names no one token.
        """
        return tuple(self._of_field(name, metadata) if token is None else token for name, token in self._named.items())

    def _of_field(self, name: str, metadata: Metadata) -> int:
        field = name.removeprefix(FIELD)
        if field not in metadata:
            raise UsageError(f"--track {brief(name)}: the prompt has no field {brief(field, repr)} besides its text")
        value = metadata[field]
        if value is None:
            raise UsageError(f"--track {name}: is null; give the text of one token, or its id as a number")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UsageError(f"--track {name}: is a {type(value).__name__}; give the text of one token, or its id as a number")
        return self._id(f"{ID}{value}" if isinstance(value, int) else value, f"--track {name}: {brief(value, repr)}")

    def _id(self, name: str, given: str) -> int:
        vocabulary, number = self._vocabulary, name.removeprefix(ID)
        if number != name and number.isascii() and number.isdigit():
            if len(number) > MAX_DIGITS or int(number) >= len(vocabulary):
                raise UsageError(f"{given}: ids are from 0 to {len(vocabulary) - 1}")
            return int(number)
        try:
            data = name.encode()
        except UnicodeEncodeError as error:
            why = "holds bytes that are not UTF-8, or half of a surrogate pair"
            raise UsageError(f"{given}: {why}; write whole characters") from error
        pieces: list[int] = self._tokenizer(name, add_special_tokens=False)["input_ids"] if name else []
        if len(pieces) == 1 and pieces[0] < len(vocabulary) and vocabulary[pieces[0]] == data:
            return pieces[0]
        same = self._tokens_of(data)
        if len(same) == 1:
            return same[0]
        parts = ", ".join(f"{token_label(vocabulary, token)} (id:{token})" for token in (same or pieces)[:8])
        kind = "several tokens" if same else "no single token of this model"
        spaced = "" if name.startswith(" ") else " or with its leading space"
        raise UsageError(f"{given}: {kind}: {parts or 'nothing'}; track one of them, as id:N{spaced}")

    def _tokens_of(self, data: bytes) -> list[int]:
        """The ids of these bytes. Looked for in a table, as a field of each of a million prompts may ask."""
        if self._ids is None:
            self._ids = {}
            for token, other in enumerate(self._vocabulary):
                if other is not None:
                    self._ids.setdefault(other, []).append(token)
        return self._ids.get(data, [])
