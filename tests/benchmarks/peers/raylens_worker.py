"""raylens in one process: texts to records, as an actor computes them, without Ray, Redis and a store.

``float16`` logprobs, the default, may be read as running sums; ``float32`` has each tap read by itself (docs/FORMAT.md).
"""

import sys

import msgspec
import numpy as np

from raylens.storage.record import Prompt, Record
from raylens.workers.settings import LensSettings, LogprobType, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.benchmarks.peers.turns import K, Tops, serve


class Raylens:
    """A worker of one model, made anew when other taps are asked for.

    Args:
        folder: of the model.
        logprobs: how they are stored.
    """

    packages = ("torch", "transformers", "numba")

    def __init__(self, folder: str, logprobs: LogprobType) -> None:
        self._settings = WorkerSettings(
            ModelSettings(folder, dtype="float32"), LensSettings(K, positions="all", logprobs=logprobs)
        )
        self._taps: list[str] = []
        self._worker: Worker | None = None

    def _ready(self, taps: list[str]) -> Worker:
        if self._worker is None or taps != self._taps:
            lens = msgspec.structs.replace(self._settings.lens, taps=tuple(taps))
            self._worker, self._taps = Worker(msgspec.structs.replace(self._settings, lens=lens)), taps
        return self._worker

    def lens(self, texts: list[str], taps: list[str]) -> list[Record]:
        """One record a text, in the order of the batches."""
        return list(self._ready(taps).run([Prompt(number, str(number), text) for number, text in enumerate(texts)]))

    def tops(self, found: list[Record], taps: list[str]) -> Tops:
        """See Peer."""
        return tops(found, taps)


def tops(records: list[Record], taps: list[str]) -> Tops:
    """What is compared, of records in any order."""
    ordered = sorted(records, key=lambda record: record.index)
    read = {tap: [record.taps[tap] for record in ordered] for tap in taps}
    ids = {tap: np.concatenate([one.ids[:, :, 0] for one in read[tap]], axis=1).tolist() for tap in taps}
    logprobs = {tap: np.concatenate([one.logprobs[:, :, 0] for one in read[tap]], axis=1).tolist() for tap in taps}
    return {tap: (ids[tap], logprobs[tap]) for tap in taps}


if __name__ == "__main__":
    serve(lambda folder: Raylens(folder, "float32" if "--float32" in sys.argv else "float16"))
