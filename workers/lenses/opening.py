"""The lens that was asked for, read and checked against the model."""

from raylens.storage.errors import ModelError
from raylens.workers.lenses import jacobian, linear, tuned
from raylens.workers.lenses.interface import HiddenLens, Place, Shape
from raylens.workers.lenses.logit import LogitLens
from raylens.workers.lenses.source import LensSource, lens_digest

_READERS = {"tuned": tuned.read, "jacobian": jacobian.read, "linear": linear.read}


def open_lens(source: LensSource, shape: Shape, places: frozenset[Place], digest: str | None = None) -> HiddenLens:
    """Read a lens.

    Args:
        source: which.
        shape: of the model.
        places: (tap, layer) that are read out.
        digest: of the files as they were when the run began, if that is known.

    Raises:
        ModelError: its files cannot be read, do not fit the model, or have changed.
    """
    if source.path is None:
        return LogitLens()
    if digest is not None and lens_digest(source) != digest:
        raise ModelError(
            f"--lens {source}: is not the file that the run began with; put that back, or give --name for another run"
        )
    return _READERS[source.kind](source.path, shape, places)
