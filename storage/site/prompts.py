"""Pages of prompts: those of a run that fit a search, and one with its grid."""

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request

from raylens.storage.database import Database
from raylens.storage.errors import UsageError
from raylens.storage.pages.page import Link, page, record_data
from raylens.storage.record import Failure, Record
from raylens.storage.record_view import readable
from raylens.storage.run import Run
from raylens.storage.selection import check_key
from raylens.storage.site import asked
from raylens.storage.site.links import address, run_links
from raylens.storage.site.shelf import Shelf

#: Prompts of a page, and characters of their text.
SIZE, TEXT = 50, 300
OUTCOMES = ("all", "records", "failures")

_FITTING = """
    SELECT prompt, id, text, tokens, failure, metadata
    FROM prompts
    WHERE ($text IS NULL OR contains(lower(text), lower($text)) OR contains(lower(id), lower($text)))
        AND (
            $key IS NULL
            OR coalesce($value IN (metadata_value(metadata, $key), metadata_json(metadata, $key)), $value IS NULL)
            AND metadata_json(metadata, $key) IS NOT NULL
        )
        AND ($outcome = 'all' OR (failure IS NULL) = ($outcome = 'records'))
"""
_COUNT = f"SELECT count(*) AS count FROM ({_FITTING})"  # noqa: S608  constant
_PAGE = f"""
    SELECT prompt, id, left(text, {TEXT}) AS text, tokens, failure, metadata::VARCHAR AS metadata
    FROM ({_FITTING})
    ORDER BY prompt
    LIMIT {SIZE} OFFSET $skip
"""  # noqa: S608  constant


def prompts(shelf: Shelf, request: Request) -> dict[str, Any]:
    """The prompts whose text or id holds ``text``, whose metadata ``key`` is ``value``, and that ended as ``outcome``.

    The value is compared as text and as JSON; without one, all that have the key fit.
    With ``against``, another run, each is shown beside what it came to there.

    Raises:
        UsageError: a value of no key, a key that no prompt has, or a page beyond the last.
    """
    one = shelf.run(request.path_params["run"])
    wanted = {name: asked.text(request, name) for name in ("text", "key", "value")}
    if wanted["value"] is not None and wanted["key"] is None:
        raise UsageError(f"value={wanted['value'][:40]}: of which metadata key? give that too")
    fitting = {**wanted, "outcome": asked.choice(request, "outcome", OUTCOMES)}
    number = asked.whole(request, "page", 1, 1, 1_000_000_000)
    total, rows = _find(one, fitting, (number - 1) * SIZE)
    pages = max(1, -(-total // SIZE))
    if number > pages:
        raise UsageError(f"page={number}: the last page is {pages}")
    against = asked.text(request, "against")
    shown = {"run": one.name, **fitting, "against": against, "page": number, "pages": pages, "total": total}
    shown["first"] = (number - 1) * SIZE + 1
    return {**shown, "prompts": [_with_metadata(row) for row in rows]}


def _find(run: Run, fitting: dict[str, Any], skip: int) -> tuple[int, list[dict[str, Any]]]:
    """How many prompts fit, and those of a page."""
    with Database([run]) as database:
        if fitting["key"] is not None:
            check_key(run, database, fitting["key"], "metadata key")
        return database.rows(_COUNT, fitting)[0]["count"], database.rows(_PAGE, {**fitting, "skip": skip})


def _with_metadata(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "metadata": orjson.loads(row["metadata"]) if row["metadata"] else {}}


def outcome_of(run: Run, request: Request) -> Record | Failure:
    """What the prompt of ``id`` came to.

    Raises:
        HTTPException: 404, the run has no such prompt.
    """
    prompt = request.query_params.get("id", "")
    if prompt not in run:
        raise HTTPException(404, f"run {run.name} has no prompt {prompt[:80]!r}; is it still to come?")
    return run[prompt]


def prompt(shelf: Shelf, request: Request) -> dict[str, Any]:
    """The stored record, with tokens and probabilities, or the failure."""
    one = shelf.run(request.path_params["run"])
    return readable(outcome_of(one, request), one.vocabulary)


def prompt_page(shelf: Shelf, request: Request) -> str | None:
    """The grid of a record; None for a failure."""
    one = shelf.run(request.path_params["run"])
    outcome = outcome_of(one, request)
    if isinstance(outcome, Failure):
        return None
    api = Link(address("api", "runs", one.name, "prompt", id=outcome.id), "JSON")
    return page([record_data(one, outcome)], [*_links(one, outcome.id), api])


def failure(shelf: Shelf, request: Request) -> dict[str, Any]:
    """The failure as ``prompt`` gives it, and the links of its page."""
    one = shelf.run(request.path_params["run"])
    return {**prompt(shelf, request), "links": _links(one, request.query_params["id"])}


def _links(run: Run, prompt_id: str) -> list[Link]:
    before, after = run.neighbours(prompt_id)
    names = [("previous prompt", before), ("next prompt", after)]
    steps = [Link(address("runs", run.name, "prompt", id=prompt), text) for text, prompt in names if prompt is not None]
    return [*run_links(run.name), *steps]
