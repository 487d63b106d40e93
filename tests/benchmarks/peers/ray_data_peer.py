"""Ray Data: ``map_batches`` of a class over a pool of one actor, as its guide to batch inference has it, with the hooks baseline.

Ray is already up; the pool and the model start anew in each round, as Ray Data has it. ``ready`` is when the first batch began.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raylens.scheduler.cluster import cluster
from tests.benchmarks.peers.hooks import Hooks
from tests.benchmarks.peers.padded import BATCH
from tests.benchmarks.peers.turns import Tops, serve


@dataclass(frozen=True)
class Rows:
    """A row for each batch, in the order of the texts: when it began, and its logprobs and ids as Hooks gives them."""

    rows: list[dict[str, Any]]
    ready: float


class Lens:
    """What the actor holds."""

    def __init__(self, folder: str, taps: list[str], threads: int) -> None:
        torch.set_num_threads(threads)
        self._hooks = Hooks.load(folder)
        self._taps = taps

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row of what a batch of texts came to."""
        begun = time.time()
        (chunks,) = self._hooks.lens(list(batch["text"]), self._taps)
        logprobs, ids = (torch.cat([chunk[which] for chunk in chunks]).numpy() for which in (0, 1))
        return {"begun": [begun], "number": [int(batch["number"][0])], "logprobs": [logprobs], "ids": [ids]}


class RayData:
    """Datasets of one model."""

    packages = ("ray", "torch", "transformers")

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._reader = Hooks.load(folder)  # for its shapes; nothing is computed with it
        ray.data.DataContext.get_current().enable_progress_bars = False

    def lens(self, texts: list[str], taps: list[str]) -> Rows:
        """All rows, in this process's memory."""
        threads = torch.get_num_threads()
        lensed = ray.data.from_items(
            [{"number": n, "text": text} for n, text in enumerate(texts)], override_num_blocks=1
        ).map_batches(
            Lens,
            fn_constructor_args=(self._folder, taps, threads),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        rows = sorted(lensed.take_all(), key=lambda row: row["number"])
        return Rows(rows, min(row["begun"] for row in rows))

    def tops(self, found: Rows, taps: list[str]) -> Tops:
        """See Peer."""
        chunks = [[(torch.tensor(row["logprobs"]), torch.tensor(row["ids"]))] for row in found.rows]
        return self._reader.tops(chunks, taps)


if __name__ == "__main__":
    with cluster("local"):
        sys.exit(serve(RayData))
