"""The page that finds a token in a run."""

from typing import Any

from starlette.requests import Request

from raylens.storage.site import asked
from raylens.storage.site.shelf import Shelf
from raylens.storage.taps import TAPS
from raylens.storage.token_names import token_ids

#: Places of a page.
SIZE = 100


def tokens(shelf: Shelf, request: Request) -> dict[str, Any]:
    """Where ``token`` is among the ``rank`` best of ``tap`` (or all), at ``layers`` and ``positions``, in corpus order."""
    one = shelf.run(request.path_params["run"])
    options = {name: asked.text(request, name) for name in ("layers", "positions")}
    wanted = {
        "tap": asked.choice(request, "tap", ("resid_post", *(tap for tap in TAPS if tap != "resid_post"), "all")),
        **options,
    }
    rank = asked.whole(request, "rank", 1, 1, 10_000)
    number = asked.whole(request, "page", 1, 1, 1_000_000)
    shown = {"run": one.name, "token": asked.text(request, "token"), **wanted, "rank": rank, "page": number}
    if shown["token"] is None:
        return {**shown, "ids": [], "places": [], "more": False}
    ids = token_ids([shown["token"]], one.vocabulary)
    chosen = {name: value for name, value in wanted.items() if value is not None}
    found = one.query("token", token=[f"id:{token}" for token in ids], rank=rank, limit=number * SIZE + 1, **chosen).rows()
    return {**shown, "ids": ids, "places": found[(number - 1) * SIZE : number * SIZE], "more": len(found) > number * SIZE}
