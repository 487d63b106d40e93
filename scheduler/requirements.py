"""The packages that raylens asks for."""

import importlib.metadata

from packaging.requirements import Requirement


def requirements() -> list[Requirement]:
    """Those without which it does not work, on a machine such as this; none where raylens is not installed but on the path."""
    try:
        named = [Requirement(text) for text in importlib.metadata.requires("raylens") or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [one for one in named if one.marker is None or one.marker.evaluate({"extra": ""})]
