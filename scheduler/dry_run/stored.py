"""What results take on disk: some of a run's, stored as its writer stores them."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import orjson

from raylens.storage.building import COMMIT_BYTES
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.payload import decode_payload
from raylens.storage.record import Failure, Record
from raylens.storage.segments import SegmentBuilder
from raylens.storage.vocabulary import write_vocabulary
from raylens.storage.writer import COMMIT_SECONDS
from raylens.workers.publish import payload_of
from raylens.workers.worker import Worker

_RUN, _WRITER = "0" * 16, "0" * 8


class Stored:
    """Results in a temporary folder, and what storing them took.

    Args:
        folder: an empty one.
        worker: whose results they are.

    Attributes:
        prompts, positions: of what is stored.
        seconds: that a writer needs for it.
        fixed_bytes: of a run of any length.
        prompt_bytes, lens_bytes: of what there is for each prompt, and for the places of the lens.
        sent_bytes: of the frames.
    """

    def __init__(self, folder: Path, worker: Worker) -> None:
        self._folder = RunFolder(folder)
        self._folder.create()
        write_vocabulary(self._folder.vocabulary, worker.vocabulary)
        self.fixed_bytes = self._folder.vocabulary.stat().st_size + len(orjson.dumps(worker.certificate))
        self._size = len(worker.vocabulary)
        self._ledger, self._segment = Ledger(self._folder), SegmentBuilder(_RUN)
        self._bare = SegmentBuilder(_RUN)  # never written
        self._waited, self._gathered = 0.0, 0
        self.prompts = self.positions = self.prompt_bytes = self.lens_bytes = self.sent_bytes = 0
        self.seconds = 0.0

    def add(self, outcomes: list[Record | Failure], seconds: float) -> None:
        """Store results that come so many seconds after the last ones."""
        payloads = [payload_of(outcome) for outcome in outcomes]
        began = time.perf_counter()
        self._waited += seconds
        if len(self._segment) and (self._waited >= COMMIT_SECONDS or self._gathered >= COMMIT_BYTES):
            self._commit()
        self._gathered += sum(map(len, payloads))
        arrived = [decode_payload(payload, one.index, self._size) for payload, one in zip(payloads, outcomes, strict=True)]
        for outcome in arrived:
            with suppress(StoreError):  # nothing that JSON can hold: the writer refuses it
                self._segment.add(outcome)
        self.seconds += time.perf_counter() - began
        for outcome in arrived:
            with suppress(StoreError):
                self._bare.add(_bare(outcome))
        self.prompts += len(arrived)
        self.positions += sum(len(one.positions) for one in arrived if isinstance(one, Record))
        self.sent_bytes += sum(map(len, payloads))

    def finish(self) -> None:
        """Commit the rest, and count bytes."""
        began = time.perf_counter()
        if len(self._segment):
            self._commit()
        self.seconds += time.perf_counter() - began
        folder = self._folder
        tables = _bytes(folder.tables.glob("*.prompts.parquet"))
        self.prompt_bytes = self._bare.size + tables + _bytes(folder.commits.iterdir())
        self.lens_bytes = _bytes(folder.records.iterdir()) + _bytes(folder.tables.iterdir()) - self._bare.size - tables

    def _commit(self) -> None:
        self._ledger.append(self._segment.write(self._folder, self._ledger.next, _WRITER))
        self._segment, self._waited, self._gathered = SegmentBuilder(_RUN), 0.0, 0


def _bare(outcome: Record | Failure) -> Record | Failure:
    """The same without any position."""
    if isinstance(outcome, Failure):
        return outcome
    return replace(outcome, positions=[], taps={name: tap.part(slice(0, 0)) for name, tap in outcome.taps.items()})


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
