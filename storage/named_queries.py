"""The library of named queries: a ``.sql`` file in storage/queries is a query, and its first lines say what it takes.

    -- One line that says what it answers.
    -- OPTION = DEFAULT: what the option is
    -- OPTION: the same for one that must be given
    -- needs: what the run must have, of NEEDS in storage/selection.py

In the statement ``places`` are the rows of ``lens`` that --tap, --layers and --positions leave, ``asked`` the prompts with the
positions asked for, and ``split`` is the value of the metadata key of --by. With --token each of the places has ``wanted``, the
ids that are looked for in its prompt. Other options are parameters: ``$rank``.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raylens.storage.errors import UsageError, brief

_FOLDER = Path(__file__).with_name("queries")
_OPTION = re.compile(r"-- (?P<name>[a-z]+)(?: = (?P<default>[^:]+))?: (?P<help>.+)")


@dataclass(frozen=True, slots=True)
class Option:
    """What a query takes.

    Attributes:
        default: as it would be written on the command line; None where the option must be given.
    """

    name: str
    default: str | None
    help: str


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query of the library.

    Attributes:
        summary: the line that says what it answers.
        options: what it takes.
        needs: what a run must have.
        sql: the statement, with its header.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    needs: tuple[str, ...]
    sql: str


@cache
def named_queries() -> dict[str, NamedQuery]:
    """Every query of the folder, by name in order."""
    return {path.stem: _read(path.stem, path.read_text()) for path in sorted(_FOLDER.glob("*.sql"))}


def named_query(name: str) -> NamedQuery:
    """One query.

    Raises:
        UsageError: there is none of the name.
    """
    found = named_queries().get(name)
    if found is None:
        raise UsageError(f"no query {brief(name, repr)}; there are {', '.join(named_queries())}")
    return found


def _read(name: str, sql: str) -> NamedQuery:
    header = [line for line in sql.splitlines() if line.startswith("-- ")]
    summary, *rest = header
    options, needs = [], ()
    for line in rest:
        match = _OPTION.fullmatch(line)
        if match is None:
            raise ValueError(f"{name}.sql: not an option: {line}")
        if match["name"] == "needs":
            needs = tuple(match["help"].split(", "))
        else:
            options.append(Option(match["name"], match["default"], match["help"]))
    return NamedQuery(name, summary.removeprefix("-- "), tuple(options), needs, sql)
