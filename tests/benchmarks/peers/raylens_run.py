"""``raylens.run`` as a user calls it: texts to a store on disk, through a Ray actor, Redis and the writer.

Ray is already up; the embedded server, writer, actor and model start anew in each run. ``ready`` is when the model was loaded
and certified, told by the file that the run then writes.
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import raylens
from raylens.scheduler.cluster import cluster
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.run import Run
from tests.benchmarks.peers.raylens_worker import tops
from tests.benchmarks.peers.turns import K, Tops, serve


@dataclass(frozen=True)
class Finished:
    """A run in a store, and since when its model was ready."""

    run: Run
    ready: float


class RaylensRun:
    """Runs of one model."""

    packages = ("ray", "redis", "torch", "transformers", "numba")

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def lens(self, texts: list[str], taps: list[str]) -> Finished:
        """A finished run in a store of its own."""
        store = Path(tempfile.mkdtemp(prefix="raylens-bench-"))
        run = raylens.run(
            texts, model=self._folder, store=store, dtype="float32", top_k=K, taps=taps, positions="all", actors=1, quiet=True
        )
        return Finished(run, RunFolder(runs_folder(store) / run.name).certificate.stat().st_mtime)

    def tops(self, found: Finished, taps: list[str]) -> Tops:
        """See Peer; the store is read and removed."""
        read = tops(list(found.run.records()), taps)
        shutil.rmtree(found.run.folder.root.parent.parent)
        return read


if __name__ == "__main__":
    with cluster("local"):
        sys.exit(serve(RaylensRun))
