"""What the options of a named query mean: which places of a run it is about, and the values of its parameters."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from raylens.storage.certificate import model_layers
from raylens.storage.database import Database
from raylens.storage.errors import UsageError, brief
from raylens.storage.layers import as_text, select_layers
from raylens.storage.named_queries import NamedQuery
from raylens.storage.positions import Positions
from raylens.storage.run import Run
from raylens.storage.table_files import text_literal
from raylens.storage.taps import parse_taps, tap_order
from raylens.storage.wanted import tracked_number, wanted

#: Beyond every position.
_END = 1 << 31
#: Metadata keys that a message names.
_KEYS_TOLD = 20
_PLAIN = re.compile(r"[0-9]{1,9}")
#: Options that choose places; the others but --token, whose places say what is wanted, are parameters of the statement.
CHOOSING = ("tap", "layers", "positions", "by")
#: Options that are of no use without a value; None of others is no choice, or no limit.
VALUED = ("layers", "rank")


@dataclass(frozen=True, slots=True)
class Lensed:
    """What the records of a run have; all have the same.

    Attributes:
        taps: tap -> its layers, ascending.
        k: tokens kept a place.
        layers: layers of the model.
        attribution, best_attribution: whether there are these statistics.
    """

    taps: dict[str, list[int]]
    k: int
    layers: int
    attribution: bool = False
    best_attribution: bool = False

    @property
    def final(self) -> bool:
        """Whether the model's last block was lensed, so that its prediction is known."""
        return self.taps.get("resid_post", [-1])[-1] == self.layers - 1


def lensed(run: Run, database: Database) -> Lensed:
    """What a run has, from its first record.

    Raises:
        UsageError: it has no record.
    """
    sql = """
        SELECT
            tap, list(DISTINCT layer) AS layers, max(len(ids)) AS k, bool_or(attribution IS NOT NULL) AS attribution,
            bool_or(best_attribution IS NOT NULL) AS best_attribution
        FROM lens
        WHERE run = $run AND prompt = (SELECT min(prompt) FROM prompt_rows WHERE run = $run AND failure IS NULL)
        GROUP BY tap
    """
    rows = database.rows(sql, {"run": run.name})
    if not rows:
        raise UsageError(f"run {run.name!r} has no records to query yet")
    taps = {row["tap"]: sorted(row["layers"]) for row in rows}
    layers = model_layers(run.certificate, max(max(found) for found in taps.values()))
    return Lensed(taps, max(row["k"] for row in rows), layers, rows[0]["attribution"], rows[0]["best_attribution"])


def select(run: Run, database: Database, query: NamedQuery, given: Mapping[str, Any]) -> dict[str, Any]:
    """Make the views ``asked`` and ``places`` of a query, and give the values of its parameters.

    Args:
        given: option -> value, as text or as the numbers it stands for; what is absent is as the query's header says.

    Raises:
        UsageError: an option that the query does not take or that lacks a value, a metadata key that no prompt has, or a run that
            lacks what the query needs.
    """
    options = options_of(query, given)
    values = {name: None if value is None and name not in VALUED else _READ[name](value, run) for name, value in options.items()}
    lowest, highest = _range(values.get("positions") or Positions())
    by = values.get("by")
    if by is not None:
        check_key(run, database, by)
    split = "NULL::VARCHAR" if by is None else f"metadata_value(metadata, {text_literal(by)})"
    database.define(
        "asked",
        f"SELECT prompt, id, token_ids, tracked, {split} AS split, {lowest} AS lowest, {highest} AS highest "  # noqa: S608
        "FROM prompt_rows WHERE failure IS NULL",
    )
    if query.needs or "places" in query.sql:
        _define_places(database, query, lensed(run, database), run, values)
    parameters = {name: value for name, value in values.items() if name not in (*CHOOSING, "token")}
    return parameters | ({"by": by} if "$by" in query.sql else {})


def options_of(query: NamedQuery, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a query, with its defaults for what is not given.

    Raises:
        UsageError: an option that it does not take, or one that it needs is absent.
    """
    taken = {option.name: option for option in query.options}
    for name in given:
        if name not in taken:
            takes = ", ".join(f"--{option}" for option in taken)
            raise UsageError(f"--{name}: query {query.name} does not take it; it takes {takes}")
    for option in query.options:
        if option.default is None and given.get(option.name) is None:
            raise UsageError(f"query {query.name} needs --{option.name}: {option.help}")
    defaults = {name: None if option.default == "none" else option.default for name, option in taken.items()}
    return {**defaults, **given}


def check_key(run: Run, database: Database, key: str, option: str = "--by") -> None:
    """Refuse a metadata key that no prompt has; of a run without prompts nothing is known.

    Args:
        option: that was given the key, for the message.

    Raises:
        UsageError: with keys that there are.
    """
    found = "SELECT 1 FROM prompt_rows WHERE run = $run AND list_contains(json_keys(metadata), $key) LIMIT 1"
    if database.rows(found, {"run": run.name, "key": key}):
        return
    keys = f"""
        SELECT
            count(*) AS prompts, list_slice(list_sort(list_distinct(flatten(list(json_keys(metadata))))), 1, {_KEYS_TOLD}) AS keys
        FROM prompt_rows
        WHERE run = $run
    """  # noqa: S608  constant
    (row,) = database.rows(keys, {"run": run.name})
    if row["prompts"]:
        has = f"their metadata has {', '.join(row['keys'])}" if row["keys"] else "they have no metadata"
        raise UsageError(f"{option} {brief(key)}: no prompt of run {run.name!r} has it; {has}")


def _define_places(database: Database, query: NamedQuery, has: Lensed, run: Run, values: Mapping[str, Any]) -> None:
    for need in query.needs:
        if problem := NEEDS[need](has, values):
            raise UsageError(f"query {query.name}: {problem} in run {run.name!r}")
    conditions = []
    tap = values.get("tap")
    if tap is not None:
        if tap not in has.taps:
            raise UsageError(
                f"--tap {tap}: run {run.name!r} does not have it; it has {', '.join(sorted(has.taps, key=tap_order))}"
            )
        conditions.append(f"tap = {text_literal(tap)}")
    given = values.get("layers", "all")
    layers = select_layers(given, has.layers)
    if not any(layer in layers for lensed in has.taps.values() for layer in lensed):
        raise UsageError(f"--layers {given}: none of them was lensed in run {run.name!r}")
    if len(layers) < has.layers:
        conditions.append(f"layer IN ({', '.join(map(str, layers))})")
    tokens = values.get("token")
    # The join is left out where it changes nothing, because it is of every place.
    tracked = tokens.least if tokens else 0
    joined = values.get("by") is not None or values.get("positions") not in (None, Positions()) or tracked > 0
    if joined:
        conditions += ["position BETWEEN lowest AND highest", f"len(tracked) >= {tracked}"]
    columns = ["lens.*" if has.final else "lens.* REPLACE (NULL::USMALLINT AS final_rank)"]
    columns.append("split" if joined else "NULL::VARCHAR AS split")
    if tokens:
        columns.append(f"{tokens.sql} AS wanted")
    database.define(
        "places",
        f"SELECT {', '.join(columns)} FROM lens {'JOIN asked USING (prompt) ' if joined else ''}"  # noqa: S608  numbers and literals
        f"{'WHERE ' if conditions else ''}{' AND '.join(conditions)}",
    )


def _range(meant: Positions) -> tuple[str, str]:
    """The lowest and the highest position of a prompt, as SQL."""
    if meant.last:
        return f"coalesce(positions[-{meant.last}], 0)", str(_END)
    tokens = "len(token_ids) - "
    lowest = f"{tokens}{-meant.first}" if meant.first < 0 else str(meant.first)
    end = _END if meant.end is None else meant.end
    return lowest, f"{tokens}{1 - end}" if end < 0 else str(end - 1)


def _needs_final(has: Lensed, _: Mapping[str, Any]) -> str:
    if "resid_post" not in has.taps:
        return "it is about the final prediction, and there is no resid_post"
    last = has.layers - 1
    return "" if has.final else f"it is about the final prediction, and resid_post of the last layer, {last}, was not lensed"


def _needs_resid_mid(has: Lensed, _: Mapping[str, Any]) -> str:
    return "" if "resid_mid" in has.taps else "it tells attention from MLP by resid_mid, and there is none"


def _needs_layers(has: Lensed, _: Mapping[str, Any]) -> str:
    found = len(has.taps["resid_post"])
    return "" if found == has.layers else f"it needs every layer, and {found} of {has.layers} were lensed"


def _needs_rank(has: Lensed, values: Mapping[str, Any]) -> str:
    rank = values["rank"]
    return "" if rank <= has.k else f"--rank {rank}: only the top {has.k} tokens of a place are kept"


def _needs_attribution(has: Lensed, values: Mapping[str, Any]) -> str:
    if values.get("to") is not None:
        return "" if has.attribution else "it needs --stats attribution, which is not"
    if values.get("minus") is not None:
        return "--minus goes only with --to, another tracked token"
    return "" if has.best_attribution else "it needs --to, a tracked token, or --stats best_attribution, which is not"


#: What the header of a query may say that it needs -> what is wrong with a run that lacks it, or nothing.
NEEDS: dict[str, Callable[[Lensed, Mapping[str, Any]], str]] = {
    "final": _needs_final,
    "resid_mid": _needs_resid_mid,
    "layers": _needs_layers,
    "rank": _needs_rank,
    "attribution": _needs_attribution,
}


def _tap(value: Any, _: Run) -> str | None:
    if value == "all":
        return None
    taps = parse_taps(value, "--tap")
    if len(taps) > 1:
        raise UsageError(f"--tap {value}: name one tap, or all")
    return taps[0]


def _between(value: Any) -> str:
    """As it would be typed; of positions, which follow each other, a pair of numbers is first and end."""
    return ":".join(map(str, value)) if isinstance(value, tuple) and len(value) == 2 else str(as_text(value))


def _count(option: str) -> Callable[[Any, Run], int]:
    def read(value: Any, _: Run) -> int:
        if not _PLAIN.fullmatch(str(value)) or not int(value):
            raise UsageError(f"--{option} {str(value)[:40]}: give a number from 1")
        return int(value)

    return read


#: Option -> what its value means.
_READ: dict[str, Callable[[Any, Run], Any]] = {
    "token": wanted,
    "to": partial(tracked_number, "to"),
    "minus": partial(tracked_number, "minus"),
    "tap": _tap,
    "layers": lambda value, _: str(as_text(value)),
    "positions": lambda value, _: Positions.parse(_between(value)),
    "rank": _count("rank"),
    "limit": _count("limit"),
    "by": lambda value, _: str(value),
}
#: The options that a query may take.
OPTIONS = tuple(_READ)
