"""What is stored of one run, by prompt id and in corpus order."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self, TypeVar

from raylens.storage.committed import Committed
from raylens.storage.durable import store_errors
from raylens.storage.errors import StoreError, UsageError, brief
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Entry
from raylens.storage.manifest import Manifest, read_manifest
from raylens.storage.record import Failure, Record
from raylens.storage.segments import read_line, read_outcome
from raylens.storage.vocabulary import StoredVocabulary, Vocabulary

T = TypeVar("T")


class Outcomes:
    """The records and failures of a run, as it was committed when it was first read; ``later`` is the run as it is now."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._stored_vocabulary = StoredVocabulary(folder.vocabulary)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.root.name

    @property
    def vocabulary(self) -> Vocabulary:
        """The bytes of each token, by token id."""
        return self._stored_vocabulary.tokens

    @cached_property
    def _committed(self) -> Committed:
        return Committed(self.folder)

    @property
    def entries(self) -> list[Entry]:
        """The ledger's entries in corpus order."""
        return self._committed.entries

    def later(self) -> Self:
        """The run as it is committed now; only what is new in its ledger is read."""
        run = type(self)(self.folder)
        if "_committed" in self.__dict__:
            run._committed = Committed(self.folder, self._committed)
        run._stored_vocabulary = self._stored_vocabulary  # of a run it stays what it is, and may be large
        return run

    def __len__(self) -> int:
        return len(self._committed.by_id)

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._committed.by_id

    def __getitem__(self, prompt_id: str) -> Record | Failure:
        outcome = self._read(prompt_id, partial(read_outcome, vocabulary_size=self.manifest.vocabulary_size))
        return replace(outcome, vocabulary=self._stored_vocabulary) if isinstance(outcome, Record) else outcome

    def record(self, prompt_id: str) -> Record:
        """The record of a prompt.

        Raises:
            UsageError: no such prompt, or it failed; with the reason.
            StoreError: its segment is damaged.
        """
        outcome = self[prompt_id]
        if not isinstance(outcome, Record):
            raise UsageError(f"prompt {prompt_id!r} has no record: it failed ({outcome.kind}): {outcome.message}")
        return outcome

    def neighbours(self, prompt_id: str) -> tuple[str | None, str | None]:
        """The ids of the stored prompts before and after one in corpus order; None at either end.

        Raises:
            UsageError: there is no such prompt.
        """
        _, entry = self._place(prompt_id)
        at = bisect_left(self.entries, entry.index, key=lambda one: one.index)
        before, after = self.entries[at - 1 : at] if at else [], self.entries[at + 1 : at + 2]
        return (before[0].id if before else None, after[0].id if after else None)

    def line(self, prompt_id: str) -> bytes:
        """The JSON line of one prompt, as stored.

        Raises:
            UsageError: there is no such prompt.
            StoreError: its segment is damaged.
        """
        return self._read(prompt_id, read_line)

    def _read(self, prompt_id: str, read: Callable[[Path, Entry], T]) -> T:
        while True:
            path, entry = self._place(prompt_id)
            try:
                return read(path, entry)
            except StoreError:
                with store_errors(path):
                    if path.exists():
                        raise
                # compacted since it was read: the ledger names another segment now; another thread may have been here first
                self.__dict__.pop("_committed", None)
                if self._place(prompt_id)[0] == path:
                    raise

    def _place(self, prompt_id: str) -> tuple[Path, Entry]:
        if not isinstance(prompt_id, str) or prompt_id not in self._committed.by_id:
            some = ", ".join(repr(entry.id) for entry in self.entries[:3])
            asked = brief(prompt_id, repr)  # a number is no id, though the prompt '0' may be there
            raise UsageError(f"run {self.name!r} has no prompt {asked}; it has {len(self)}, such as {some or 'none yet'}")
        return self._committed.by_id[prompt_id]

    def __iter__(self) -> Iterator[Record | Failure]:
        for entry in self.entries:
            yield self[entry.id]

    def records(self) -> Iterator[Record]:
        """The records in corpus order."""
        for entry in self.entries:
            if entry.failure is None:
                yield self.record(entry.id)

    def failures(self) -> Iterator[Failure]:
        """The failures in corpus order; memory is used only for prompts that failed."""
        failed = type(self)(self.folder)
        failed._committed = Committed(self.folder, wanted=lambda entry: entry.failure is not None)
        for entry in failed.entries:
            outcome = failed[entry.id]
            assert isinstance(outcome, Failure)
            yield outcome
