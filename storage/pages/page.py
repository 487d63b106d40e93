"""The page put together: markup, style, scripts and data in one file, under a policy that names each by its hash."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raylens.storage.pages.lens_data import lens_data
from raylens.storage.record import Record
from raylens.storage.run import Run

_ASSETS = Path(__file__).with_name("assets")
#: In this order: each uses what comes before it.
_SCRIPTS = ("arrays", "lens", "scale", "dom", "grid", "detail", "trajectory", "state", "controls", "main")
#: In JSON inside a script element: what could end the element or begin a comment, and line ends of old scripts.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True, slots=True)
class Link:
    """A link above the page's heading."""

    href: str
    text: str


def record_page(run: Run, record: Record, positions: Sequence[int] | None = None) -> str:
    """The HTML of one record.

    Args:
        positions: those to show; all of the record's by default.

    Raises:
        UsageError: the record has no tap.
    """
    return page([record_data(run, record, positions)])


def record_data(run: Run, record: Record, positions: Sequence[int] | None = None) -> dict[str, Any]:
    """``lens_data`` of a record of a run."""
    return lens_data(record, run.vocabulary, run.manifest.title, run.name, positions)


def page(records: Sequence[dict[str, Any]], links: Sequence[Link] = ()) -> str:
    """The HTML of one record, or of several of the same prompt side by side that are shown alike.

    Args:
        records: of ``lens_data``.
        links: to other pages of a site; a file of its own has none.
    """
    html: str = _template().render(
        records=records,
        policy=policy(),
        style=_style(),
        script=_script(),
        links=links,
        data=[_island(record) for record in records],
    )
    return html


@cache
def policy() -> str:
    """The Content-Security-Policy: this style and this script, and nothing from anywhere else."""
    return f"default-src 'none'; script-src {_hash(_script())}; style-src {_hash(_style())}; base-uri 'none'; form-action 'none'"


@cache
def _script() -> str:
    return "\n".join((_ASSETS / f"{name}.js").read_text() for name in _SCRIPTS)


@cache
def _style() -> str:
    return (_ASSETS / "page.css").read_text()


@cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(_ASSETS), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html")


def _island(value: dict[str, Any]) -> str:
    text = orjson.dumps(value).decode()
    for character, escaped in _ESCAPES.items():
        text = text.replace(character, escaped)
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
