"""Pages from templates, in which every text is escaped and shown as a label."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request

from raylens.storage.counted import counted
from raylens.storage.labels import fit, text_label
from raylens.storage.labels import label as label_of
from raylens.storage.site.links import address, place, run_links

_TEMPLATES = Path(__file__).with_name("templates")
#: Characters of a text that a page shows in one line.
LINE = 160
_WAIT = Markup("<!-- computing -->\n")


def render(template: str, request: Request, value: dict[str, Any]) -> str:
    """A page.

    Args:
        value: what its address shows; the names that the template uses.
    """
    html: str = _environment().get_template(template).render(**value, api=_api(request))
    return html


def stream(template: str, request: Request, runs: Sequence[str], answer: Callable[[], dict[str, Any]]) -> Iterator[str]:
    """A page in two parts: what is before ``{{ wait }}`` in the template, and then what needs ``answer()``, which may take long.

    Args:
        runs: names to choose from.
    """
    query: defaultdict[str, str | None] = defaultdict(lambda: None, request.query_params)
    value = {"path": request.path_params, "query": query, "runs": runs, "api": _api(request), "answer": answer, "wait": _WAIT}
    part: list[str] = []
    for piece in _environment().get_template(template).generate(**value):
        part.append(piece)
        if piece == _WAIT:
            yield "".join(part)
            part.clear()
    yield "".join(part)


def _api(request: Request) -> str:
    return f"/api{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        text=lambda text: fit(text_label(str(text)), LINE),
        value=lambda value: fit(text_label(value if isinstance(value, str) else orjson.dumps(value)), LINE),
        whole_text=lambda text: text_label(str(text)),
        token=lambda text: "" if text is None else label_of(text),
        number=_number,
        count=counted,
    )
    environment.globals.update(address=address, place=place, run_links=run_links)
    return environment


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
