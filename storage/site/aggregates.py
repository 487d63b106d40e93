"""Pages of whole runs: aggregates by layer, and two runs side by side."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from raylens.storage import charts, comparison
from raylens.storage.database import Database
from raylens.storage.errors import UsageError
from raylens.storage.pages.page import Link, page, record_data
from raylens.storage.record import Failure
from raylens.storage.record_view import readable
from raylens.storage.result import ask
from raylens.storage.run import Run
from raylens.storage.site import asked
from raylens.storage.site.links import address
from raylens.storage.site.prompts import outcome_of
from raylens.storage.site.shelf import Shelf

#: Metadata keys offered to split by, and prompts that they are looked for in.
KEYS, SAMPLE = 30, 1_000
#: Values of one that a page has tables of.
MOST_VALUES = 200
_KEYS = f"""
    SELECT DISTINCT unnest(json_keys(metadata)) AS key
    FROM (SELECT metadata FROM prompts WHERE metadata IS NOT NULL LIMIT {SAMPLE})
    ORDER BY key
    LIMIT {KEYS}
"""  # noqa: S608  constant


def aggregate(shelf: Shelf, request: Request) -> dict[str, Any]:
    """Entropy, KL and agreement by layer and tap, decision depth, and failures.

    ``by`` splits by a metadata key, ``positions`` chooses those that are counted.
    """
    one = shelf.run(request.path_params["run"])
    chosen = _chosen(request)
    by = chosen.get("by")
    with Database([one]) as database:
        values = 0 if by is None else charts.values_of(one, database, by)
        if values > MOST_VALUES:
            raise UsageError(f"--by {by}: {values:,} values; at most {MOST_VALUES} are shown; choose a key with fewer")
        layers = ask(one, database, "layers", chosen)
        keys = [row["key"] for row in database.rows(_KEYS)]
        return {
            "run": one.name,
            "by": by,
            "positions": chosen.get("positions"),
            "keys": keys,
            "layers": layers,
            "undrawn": charts.undrawn(by, values) if by is not None and layers else None,
            "depth": charts.depth(one, database, chosen),
            "failures": ask(one, database, "failures", {} if by is None else {"by": by}),
        }


def _chosen(request: Request) -> dict[str, str]:
    return {name: given for name in ("by", "positions") if (given := asked.text(request, name)) is not None}


def aggregate_picture(shelf: Shelf, request: Request) -> bytes:
    """The chart of a run as SVG."""
    chosen = _chosen(request)
    one = shelf.run(request.path_params["run"])
    return charts.render(one, "svg", by=chosen.get("by"), positions=chosen.get("positions"))


def _both(shelf: Shelf, request: Request) -> tuple[Run, Run]:
    names = [request.query_params.get(name, "") for name in ("one", "other")]
    one, other = (shelf.run(name) for name in names)
    return one, other


def compare(shelf: Shelf, request: Request) -> dict[str, Any]:
    """What ``other`` changes of ``one``, by layer and tap; nothing without them."""
    shown = {name: asked.text(request, name) for name in ("one", "other")}
    known = None not in shown.values()
    return {**shown, "layers": comparison.compare(*_both(shelf, request)).rows() if known else []}


def compare_picture(shelf: Shelf, request: Request) -> bytes:
    """The chart of two runs as SVG."""
    one, other = _both(shelf, request)
    return charts.render(one, "svg", other=other)


def compare_prompt(shelf: Shelf, request: Request) -> dict[str, Any]:
    """What the prompt of ``id`` came to in both runs."""
    return {run.name: readable(outcome_of(run, request), run.vocabulary) for run in _both(shelf, request)}


def compare_prompt_page(shelf: Shelf, request: Request) -> str:
    """Both grids side by side, shown alike.

    Raises:
        HTTPException: 404, the prompt failed in one of them.
    """
    both = _both(shelf, request)
    records = []
    for run in both:
        outcome = outcome_of(run, request)
        if isinstance(outcome, Failure):
            raise HTTPException(404, f"run {run.name} has no record of the prompt: it failed ({outcome.kind}): {outcome.message}")
        records.append(record_data(run, outcome))
    names = {"one": both[0].name, "other": both[1].name}
    links = [
        Link("/", "runs"),
        *(Link(address("runs", run.name), run.name) for run in both),
        Link(address("compare", **names), "compare"),
        Link(address("api", "compare", "prompt", **names, id=request.query_params["id"]), "JSON"),
    ]
    return page(records, links)
