"""Pages of the store and of a run: what there is, how far it is, and what it was made with."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from raylens.storage.errors import RaylensError
from raylens.storage.site.shelf import Shelf
from raylens.storage.status import state_of


def store(shelf: Shelf, request: Request) -> dict[str, Any]:  # noqa: ARG001  pages are called alike
    """The runs, newest first; one that cannot be read has its error instead."""
    return {"store": str(shelf.store.path), "runs": [_line(shelf, name) for name in reversed(shelf.store.names())]}


def _line(shelf: Shelf, name: str) -> dict[str, Any]:
    try:
        one = shelf.run(name)
        manifest, progress = one.manifest, shelf.progress(name)
        about = {
            "made": manifest.created,
            "model": manifest.title,
            "corpus": str(manifest.sources.get("corpus", "")),
        }
        return {"run": name, "state": state_of(one.folder, complete=progress["complete"]), **about, **progress, "error": None}
    except RaylensError as error:
        return {"run": name, "error": str(error)}
    except HTTPException as error:  # it was moved aside meanwhile
        return {"run": name, "error": error.detail}


def run(shelf: Shelf, request: Request) -> dict[str, Any]:
    """A run's progress, sources, settings, versions and certificate."""
    name = request.path_params["run"]
    one = shelf.run(name)
    return {
        "run": name,
        "made": one.manifest.created,
        "progress": shelf.progress(name),
        "sources": one.manifest.sources,
        "settings": one.manifest.identity,
        "versions": one.manifest.versions,
        "certificate": one.certificate,
        "others": [other for other in shelf.store.names() if other != name],
    }


def progress(shelf: Shelf, request: Request) -> dict[str, Any]:
    """How far a run is."""
    name = request.path_params["run"]
    return {"run": name, **shelf.progress(name)}
