"""What a run is asked to do, beyond the model and the lens."""

from pathlib import Path
from typing import Literal

from raylens.storage.errors import UsageError, brief
from raylens.storage.python_values import Settings
from raylens.workers.settings import WorkerSettings, check_types

#: Helpers of one writer.
MAX_HELPERS = 256


class RunSettings(Settings, frozen=True):
    """Everything a run needs except its corpus.

    Attributes:
        worker: model, lens and input.
        store: folder of runs.
        name: of the run; None names it after model and corpus.
        actors: number of actors; None means one a GPU share, or one a node without GPUs.
        gpus_per_actor: GPUs of one actor, or a fraction of one.
        ray: ``auto`` (RAY_ADDRESS if set, else local), ``local``, or an address.
        redis: ``embedded`` or a URL.
        writer: ``own``, or ``external`` if ``raylens writer`` stores the results.
        writer_helpers: processes that may make segments for a writer of ours; None chooses by the machine's cores.
        fresh: move a run of this name aside and begin anew.
        intervention: the file that the edits were read from, for people.
    """

    worker: WorkerSettings
    store: Path
    name: str | None = None
    actors: int | None = None
    gpus_per_actor: float = 1.0
    ray: str = "auto"
    redis: str = "embedded"
    writer: Literal["own", "external"] = "own"
    writer_helpers: int | None = None
    fresh: bool = False
    intervention: str | None = None


def check(settings: RunSettings) -> None:
    """Refuse what cannot be.

    Raises:
        UsageError: naming the option.
    """
    check_types(settings)
    check_actors(settings.actors, settings.gpus_per_actor)
    check_helpers("--writer-helpers", settings.writer_helpers)
    if settings.writer == "external" and settings.redis == "embedded":
        raise UsageError("--writer external: the embedded server is not reached from outside; give --redis URL")
    name = settings.name
    if name is not None and (
        not name or len(name) > 100 or name.startswith(".") or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name)
    ):
        raise UsageError(f"--name {brief(name, repr)}: use 1 to 100 letters, digits, '-', '_' and '.', not beginning with '.'")


def check_helpers(option: str, helpers: int | None) -> None:
    """Refuse a number of helpers that no machine has cores for.

    Raises:
        UsageError: naming the option.
    """
    if helpers is not None and not 0 <= helpers <= MAX_HELPERS:
        raise UsageError(f"{option} {helpers}: use a number from 0 to {MAX_HELPERS}")


def check_actors(actors: int | None, gpus_per_actor: float) -> None:
    """Refuse numbers of actors and GPUs that cannot be.

    Raises:
        UsageError: naming the option.
    """
    if actors is not None and actors < 1:
        raise UsageError(f"--actors {actors}: must be at least 1")
    if not (gpus_per_actor == 0 or 0.0001 <= gpus_per_actor < 1000):  # less is none to Ray
        raise UsageError(f"--gpus-per-actor {gpus_per_actor:g}: must be 0, or from 0.0001 to less than 1000")
    if gpus_per_actor > 1 and gpus_per_actor != int(gpus_per_actor):  # Ray's rule
        raise UsageError(f"--gpus-per-actor {gpus_per_actor:g}: use a whole number, or a fraction of one")
