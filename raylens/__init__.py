"""raylens: the logit lens for corpora.

- ``raylens.lens`` lenses one text in this process and returns its record.
- ``raylens.run`` lenses a corpus into a store and returns the run.
- ``raylens.open`` opens a store for reading; it needs no torch, Ray or Redis.
- ``raylens.fit_lens`` fits a tuned or linear lens to a model.

Every error raised on purpose is a ``raylens.RaylensError``. Names are loaded on first use, so ``import raylens`` imports
neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raylens.scheduler.api import fit_lens, run
    from raylens.storage.errors import BrokerError, ClusterError, InputError, ModelError, RaylensError, StoreError, UsageError
    from raylens.storage.record import Failure, Record, TapLens
    from raylens.storage.run import Run
    from raylens.storage.store import Store
    from raylens.storage.store import open_store as open  # noqa: A004
    from raylens.workers.api import lens

__all__ = [
    "BrokerError",
    "ClusterError",
    "Failure",
    "InputError",
    "ModelError",
    "RaylensError",
    "Record",
    "Run",
    "Store",
    "StoreError",
    "TapLens",
    "UsageError",
    "fit_lens",
    "lens",
    "open",
    "run",
]

_ERRORS = ("BrokerError", "ClusterError", "InputError", "ModelError", "RaylensError", "StoreError", "UsageError")
_HOMES = {
    **{error: ("raylens.storage.errors", error) for error in _ERRORS},
    "Failure": ("raylens.storage.record", "Failure"),
    "Record": ("raylens.storage.record", "Record"),
    "Run": ("raylens.storage.run", "Run"),
    "Store": ("raylens.storage.store", "Store"),
    "TapLens": ("raylens.storage.record", "TapLens"),
    "fit_lens": ("raylens.scheduler.api", "fit_lens"),
    "lens": ("raylens.workers.api", "lens"),
    "open": ("raylens.storage.store", "open_store"),
    "run": ("raylens.scheduler.api", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raylens' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__})
