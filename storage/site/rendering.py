"""Pages from templates, in which every text is escaped and shown as a label."""

import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request

from raylens.storage.labels import fit, text_label, token_label
from raylens.storage.labels import label as label_of
from raylens.storage.site.links import address, place, run_links

_TEMPLATES = Path(__file__).with_name("templates")
#: Characters of a text that a page shows in one line.
LINE = 160


def render(template: str, request: Request, value: dict[str, Any]) -> str:
    """A page.

    Args:
        value: what its address shows; the names that the template uses.
    """
    query = f"?{request.url.query}" if request.url.query else ""
    html: str = _environment().get_template(template).render(**value, api=f"/api{request.url.path}{query}")
    return html


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        text=lambda text: fit(text_label(str(text)), LINE),
        whole_text=lambda text: text_label(str(text)),
        token=lambda text: "" if text is None else label_of(text),
        number=_number,
        share=lambda value: "" if value is None else f"{value:.1%}",
    )
    environment.globals.update(address=address, place=place, run_links=run_links, token_label=token_label)
    return environment


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
