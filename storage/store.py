"""A store read back: a folder of runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylens.storage.durable import store_errors
from raylens.storage.errors import StoreError, UsageError, brief
from raylens.storage.layout import RunFolder, named_run, runs_folder
from raylens.storage.paths import given_path, is_text
from raylens.storage.run import Run

if TYPE_CHECKING:
    from raylens.storage.result import Result


class Store:
    """A folder of runs.

    ``store[name]`` is a ``Run``, by its name or by a beginning of it that only one run has. Iteration yields the runs,
    oldest first; ``name in store`` takes whole names only.

    Raises:
        StoreError: there is no such folder, or it is a part of a store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = given_path(path, "store")
        if not self.path.is_dir():
            raise StoreError(f"{self.path}: no such store; give the folder that raylens run wrote to")
        _check_whole(self.path)

    def names(self) -> list[str]:
        """The names of the runs, oldest first; runs without a run.json come before all others."""
        parent = runs_folder(self.path)
        with store_errors(parent):
            runs = [RunFolder(child) for child in parent.iterdir()] if parent.is_dir() else []
            begun = {one.root.name: one.manifest.stat().st_mtime_ns if one.manifest.exists() else 0 for one in runs if one.is_run}
        return sorted(begun, key=lambda name: (begun[name], name))

    def folders(self, name: str | None = None) -> list[RunFolder]:
        """The folders of all runs, or of one, whether or not they can be read; ordered by name.

        Raises:
            UsageError: there is no run of that name.
        """
        parent = runs_folder(self.path)
        with store_errors(parent):
            children = list(parent.iterdir()) if parent.is_dir() else []
            found = sorted(child for child in children if child.is_dir() and is_text(child.name))
        fitting = [child for child in found if name in {None, child.name}]
        if name is not None and not fitting:
            raise UsageError(
                f"store {self.path} has no run {brief(name, repr)}; it has {', '.join(one.name for one in found) or 'none'}"
            )
        return [RunFolder(child) for child in fitting]

    def runs(self) -> list[Run]:
        """The runs, oldest first."""
        return [Run(RunFolder(runs_folder(self.path) / name)) for name in self.names()]

    def __getitem__(self, name: str) -> Run:
        if name in self:  # without a look at all others, of which there may be a thousand
            return Run(RunFolder(runs_folder(self.path) / name))
        names = self.names()
        fitting = [one for one in names if name and isinstance(name, str) and one.startswith(name)]
        if len(fitting) != 1:
            problem = "no run" if not fitting else f"{len(fitting)} runs that begin with"
            raise UsageError(
                f"store {self.path} has {problem} {brief(name, repr)}; it has {', '.join(fitting or names) or 'none'}"
            )
        return Run(RunFolder(runs_folder(self.path) / fitting[0]))

    def sql(self, sql: str, parameters: Mapping[str, Any] | None = None) -> "Result":
        """A SELECT over the views of all runs (docs/QUERIES.md), computed when the result is read; see ``Run.sql``."""
        from raylens.storage.result import sql_query

        return sql_query(self.runs(), sql, parameters)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs())

    def __contains__(self, name: object) -> bool:
        """Whether there is a run of exactly this name."""
        return isinstance(name, str) and named_run(self.path, name) is not None

    def __len__(self) -> int:
        return len(self.names())

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}: {len(self)} runs>"

    def _repr_html_(self) -> str:
        from raylens.storage.notebook import store_html

        return store_html(self)


def _check_whole(path: Path) -> None:
    """Refuse a folder within a store, in which there are no runs.

    Raises:
        StoreError: naming the store.
    """
    path = path.absolute()
    if RunFolder(path).is_run:
        raise StoreError(f"{path}: is a run; give its store, {path.parent.parent}, which has it by its name, {path.name!r}")
    if path.name == "runs" and not runs_folder(path).is_dir() and any(RunFolder(child).is_run for child in path.iterdir()):
        raise StoreError(f"{path}: holds the runs of a store; give that, {path.parent}")


def open_store(path: str | Path) -> Store:
    """Open a store for reading, as ``raylens.open``; ``raylens.open("raylens-store")["first"]`` is a run.

    Raises:
        StoreError: there is no such folder, or it is a part of a store.
    """
    return Store(path)
