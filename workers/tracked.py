"""Which ids ``--track`` names."""

from collections.abc import Sequence
from typing import Any

from raylens.storage.errors import UsageError
from raylens.storage.labels import token_label
from raylens.storage.vocabulary import Vocabulary

_ID = "id:"


def track_names(asked: str | int | Sequence[str | int]) -> tuple[str, ...]:
    """What ``--track`` would be given: one token or several, by text or id."""
    each = [asked] if isinstance(asked, str | int) else asked
    return tuple(f"{_ID}{token}" if isinstance(token, int) else token for token in each)


def tracked_ids(names: Sequence[str], tokenizer: Any, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids, each once, in the order given.

    A text names the one token it is to the tokenizer, or the one whose bytes it is: a leading space counts. Tokens that no
    text names alone are named by ``id:`` and their number.

    Raises:
        UsageError: no token or several are named; with the tokens the text comes to.
    """
    return tuple(dict.fromkeys(_tracked_id(name, tokenizer, vocabulary) for name in names))


def _tracked_id(name: str, tokenizer: Any, vocabulary: Vocabulary) -> int:
    number = name.removeprefix(_ID)
    if number != name and number.isascii() and number.isdigit():
        if int(number) >= len(vocabulary):
            raise UsageError(f"--track {name}: ids are from 0 to {len(vocabulary) - 1}")
        return int(number)
    pieces: list[int] = tokenizer(name, add_special_tokens=False)["input_ids"] if name else []
    if len(pieces) == 1 and vocabulary[pieces[0]] == name.encode():
        return pieces[0]
    same = [token for token, data in enumerate(vocabulary) if data == name.encode()]
    if len(same) == 1:
        return same[0]
    parts = ", ".join(f"{token_label(vocabulary, token)} (id:{token})" for token in (same or pieces)[:8])
    kind = "several tokens" if same else "no single token of this model"
    raise UsageError(f"--track {name!r}: {kind}: {parts or 'nothing'}; track one of them, as id:N or with its leading space")
