"""The site: addresses, the pages that answer them, and how an error is shown."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from raylens.storage.errors import RaylensError, StoreError
from raylens.storage.pages.page import policy
from raylens.storage.site import aggregates, prompts, runs, tokens
from raylens.storage.site.guard import Guard
from raylens.storage.site.rendering import render, stream
from raylens.storage.site.shelf import Shelf

#: What answers an address: the value shown, as JSON.
Read = Callable[[Shelf, Request], dict[str, Any]]
_API = "/api"
_STATIC = Path(__file__).with_name("static")

#: Address, what it shows, and the template that shows it.
_PAGES: tuple[tuple[str, Read, str], ...] = (
    ("/", runs.store, "store.html"),
    ("/runs/{run}", runs.run, "run.html"),
)
#: The same where a large run takes long: the page is sent as far as it is known without.
_SLOW_PAGES: tuple[tuple[str, Read, str], ...] = (
    ("/runs/{run}/prompts", prompts.prompts, "prompts.html"),
    ("/runs/{run}/tokens", tokens.tokens, "tokens.html"),
    ("/runs/{run}/aggregate", aggregates.aggregate, "aggregate.html"),
    ("/compare", aggregates.compare, "compare.html"),
)
_PICTURES = (("/runs/{run}/aggregate.svg", aggregates.aggregate_picture), ("/compare.svg", aggregates.compare_picture))


def site(shelf: Shelf, token: str | None = None) -> Starlette:
    """The application.

    Args:
        token: what a reader must know (guard.py).
    """
    routes: list[BaseRoute] = []
    for pages, answer in ((_PAGES, _page), (_SLOW_PAGES, _slow_page)):
        for path, read, template in pages:
            routes += [Route(_API + path, partial(_json, shelf, read)), Route(path, partial(answer, shelf, read, template))]
    routes += [
        Route(f"{_API}/runs/{{run}}/progress", partial(_json, shelf, runs.progress)),
        Route(f"{_API}/runs/{{run}}/prompt", partial(_json, shelf, prompts.prompt)),
        Route(f"{_API}/compare/prompt", partial(_json, shelf, aggregates.compare_prompt)),
        Route("/runs/{run}/prompt", partial(_prompt, shelf)),
        Route("/compare/prompt", partial(_compare_prompt, shelf)),
        *(Route(path, partial(_picture, shelf, draw)) for path, draw in _PICTURES),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    handlers: Any = {RaylensError: _failed, HTTPException: _failed}
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token)], exception_handlers=handlers)


def _json(shelf: Shelf, read: Read, request: Request) -> Response:
    return _json_response(read(shelf, request))


def _json_response(value: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _page(shelf: Shelf, read: Read, template: str, request: Request) -> Response:
    return HTMLResponse(render(template, request, read(shelf, request)))


def _slow_page(shelf: Shelf, read: Read, template: str, request: Request) -> Response:
    if "run" in request.path_params:
        shelf.run(request.path_params["run"])  # a missing or damaged run is an answer of its own, while there is time for one

    def answer() -> dict[str, Any]:
        try:
            return {**read(shelf, request), "problem": None}
        except RaylensError as error:
            return {"problem": str(error)}
        except HTTPException as error:
            return {"problem": error.detail}

    return StreamingResponse(stream(template, request, shelf.store.names(), answer), media_type="text/html")


def _prompt(shelf: Shelf, request: Request) -> Response:
    html = prompts.prompt_page(shelf, request)
    if html is None:
        return HTMLResponse(render("failure.html", request, prompts.failure(shelf, request)))
    return _record_response(html)


def _compare_prompt(shelf: Shelf, request: Request) -> Response:
    return _record_response(aggregates.compare_prompt_page(shelf, request))


def _record_response(html: str) -> Response:
    return HTMLResponse(html, headers={"Content-Security-Policy": f"{policy()}; frame-ancestors 'none'"})


def _picture(shelf: Shelf, draw: Callable[[Shelf, Request], bytes], request: Request) -> Response:
    return Response(draw(shelf, request), media_type="image/svg+xml")


def _failed(request: Request, error: Exception) -> Response:
    """400 for what was asked wrongly, 404 for what there is not, 500 for a damaged store."""
    status = error.status_code if isinstance(error, HTTPException) else 500 if isinstance(error, StoreError) else 400
    message = str(error.detail if isinstance(error, HTTPException) else error)
    if request.url.path.startswith(f"{_API}/"):
        return _json_response({"error": message}, status)
    return HTMLResponse(render("error.html", request, {"status": status, "message": message}), status)
