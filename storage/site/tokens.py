"""The page that finds a token in a run."""

from typing import Any

from starlette.requests import Request

from raylens.storage.site import asked
from raylens.storage.site.shelf import Shelf
from raylens.storage.taps import TAPS, is_head
from raylens.storage.wanted import wanted

#: Places of a page, and pages: those before one are found anew for it.
SIZE, PAGES = 100, 1000


def tokens(shelf: Shelf, request: Request) -> dict[str, Any]:
    """Where ``token`` is among the ``rank`` best of ``tap`` (or all), at ``layers`` and ``positions``, in corpus order."""
    one = shelf.run(request.path_params["run"])
    chosen = {"tap": _tap(request), **{name: asked.text(request, name) for name in ("layers", "positions")}}
    rank = asked.whole(request, "rank", 1, 1, 10_000)
    number = asked.whole(request, "page", 1, 1, PAGES)
    shown = {"run": one.name, "token": asked.text(request, "token"), **chosen, "rank": rank, "page": number}
    if shown["token"] is None:
        return {**shown, "ids": [], "places": [], "more": False}
    ids = [token for token in wanted(shown["token"], one).tokens if isinstance(token, int)]
    given = {name: value for name, value in chosen.items() if value is not None}
    found = one.query("token", token=shown["token"], rank=rank, limit=number * SIZE + 1, **given).rows()
    pinned = {"of": ids[0], "pin": ",".join(map(str, ids))} if ids else {}
    places = [{**place, "shown": _shown(place) | pinned} for place in found[(number - 1) * SIZE : number * SIZE]]
    return {**shown, "ids": ids, "places": places, "more": len(found) > number * SIZE and number < PAGES}


def _tap(request: Request) -> str:
    given = asked.text(request, "tap")
    if given is not None and is_head(given):
        return given
    return asked.choice(request, "tap", ("resid_post", *(tap for tap in TAPS if tap != "resid_post"), "all"))


def _shown(place: dict[str, Any]) -> dict[str, Any]:
    """What a link to the prompt's page chooses there."""
    return {name: place[name] for name in ("tap", "layer", "position")}
