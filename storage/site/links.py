"""Addresses of the site. What stands in a path is a run's name; ids and other text are in the query."""

from urllib.parse import quote, urlencode

from raylens.storage.pages.page import Link


def address(*path: str, **query: str | int | None) -> str:
    """``/runs/NAME/prompt?id=...``; parameters of None are left out."""
    given = {name: str(value) for name, value in query.items() if value is not None}
    return "/" + "/".join(quote(part, safe="") for part in path) + (f"?{urlencode(given, errors='replace')}" if given else "")


def place(run: str, prompt: str, **state: str | int) -> str:
    """A prompt's page with a state (pages/assets/state.js), such as a tap, layer and position."""
    return f"{address('runs', run, 'prompt', id=prompt)}#{urlencode(state)}"


def run_links(name: str) -> list[Link]:
    """What leads on from a page of a run."""
    pages = {"prompts": "prompts", "aggregate": "aggregates", "tokens": "find a token"}
    return [
        Link("/", "runs"),
        Link(address("runs", name), name),
        *(Link(address("runs", name, part), text) for part, text in pages.items()),
        Link(address("compare", one=name), "compare"),
    ]
