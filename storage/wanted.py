"""The tokens that a question is about: the same in all prompts, or in each the one that was tracked of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylens.storage.errors import NotDrawn, UsageError, brief
from raylens.storage.python_values import plain
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.token_names import FIELD, token_ids
from raylens.storage.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Own:
    """The token of each prompt that is the ``number``-th of its tracked ones, from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens in the order in which they were named.

    Attributes:
        tokens: an id, which is the same in all prompts, or what each prompt has of its own.
    """

    tokens: tuple[int | Own, ...]

    @property
    def least(self) -> int:
        """How many tracked tokens a prompt must have."""
        return max((token.number for token in self.tokens if isinstance(token, Own)), default=0)

    def of(self, record: Record) -> list[int]:
        """Their ids in a prompt, in order; two may be the same there.

        Raises:
            NotDrawn: the record has fewer tracked tokens than its run.
        """
        if len(record.tracked) < self.least:
            raise NotDrawn(f"prompt {record.id!r} has only {len(record.tracked)} of the tracked tokens of its run")
        return [record.tracked[token.number - 1] if isinstance(token, Own) else token for token in self.tokens]

    @property
    def sql(self) -> str:
        """Their ids in a row that has the prompt's ``tracked``, each once, as a list."""
        ids = ", ".join(f"tracked[{token.number}]" if isinstance(token, Own) else str(token) for token in self.tokens)
        return f"list_distinct([{ids}]::UINTEGER[])" if self.least else f"[{ids}]::UINTEGER[]"


def wanted(names: str | int | Sequence[str | int], run: Run) -> Wanted:
    """The tokens by text, as ``id:N``, or as ``field:NAME`` where the run tracked that field.

    Raises:
        UsageError: no token, several, or a field that was not tracked.
    """
    tokens: list[int | Own] = []
    for name in _each(names):
        ids = [] if isinstance(name, str) and name.startswith(FIELD) else token_ids(name, run.vocabulary)
        # where several have the same bytes, a token is by the name that it was tracked by the one that the run took it for
        own = not ids or (len(ids) > 1 and name in run.manifest.tracked)
        tokens += [Own(tracked_number("token", name, run))] if own else ids
    return Wanted(tuple(dict.fromkeys(tokens)))


def ids_of(names: str | int | Sequence[str | int], vocabulary: Vocabulary) -> tuple[int, ...]:
    """The tokens of no run, by text or as ``id:N``.

    Raises:
        UsageError: no token, or several, or a field, which is of a run.
    """
    if field := next((name for name in _each(names) if isinstance(name, str) and name.startswith(FIELD)), None):
        raise UsageError(f"--token {field!r}: a run knows what it tracked, a record does not; plot the prompt by its run")
    return tuple(dict.fromkeys(token for name in _each(names) for token in token_ids(name, vocabulary)))


def _each(names: Any) -> list[Any]:
    names = plain(names, "--token")
    each = list(names) if isinstance(names, list | tuple) else [names]
    if not each:
        raise UsageError("--token: name at least one token, by its text or as id:N")
    return each


def tracked_number(option: str, value: Any, run: Run) -> int:
    """Which of the tracked tokens it is, from 1, by the name that the run was given for it or by another.

    Raises:
        UsageError: none of them, or several.
    """
    names = run.manifest.tracked
    if value in names:
        return names.index(value) + 1
    ids = [] if not isinstance(value, int | str) or str(value).startswith(FIELD) else token_ids(value, run.vocabulary, option)
    same = [(number, name) for number, name in enumerate(names, start=1) if not name.startswith(FIELD)] if ids else []
    found = {token: number for number, name in same if (token := _tracked_id(run, number, name)) in ids}
    if len(found) > 1:
        several = ", ".join(repr(names[number - 1]) for number in found.values())
        raise UsageError(f"--{option} {brief(value, repr)}: several tracked tokens of run {run.name!r}, {several}; name one so")
    if found:
        return found.popitem()[1]
    has = f"it tracks {', '.join(map(repr, names))}" if names else "it tracks none"
    raise UsageError(f"--{option} {brief(value, repr)}: not a tracked token of run {run.name!r}; {has}")


def _tracked_id(run: Run, number: int, name: str) -> int | None:
    """The token that a run took a name for; None where of several with its bytes no record says which."""
    ids = token_ids(name, run.vocabulary)
    if len(ids) == 1:
        return ids[0]
    record = next(run.records(), None)
    return record.tracked[number - 1] if record is not None and number <= len(record.tracked) else None
