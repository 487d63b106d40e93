"""One run of a store read back: its records, failures, queries and pictures; needs no torch, ray or redis."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import ArrayLike

from raylens.storage.arguments import arguments
from raylens.storage.certificate import read_certificate
from raylens.storage.committed import Committed
from raylens.storage.counted import counted
from raylens.storage.dataframes import DataFrames
from raylens.storage.durable import store_errors
from raylens.storage.errors import StoreError, UsageError, brief
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Entry
from raylens.storage.manifest import Manifest, read_manifest
from raylens.storage.quarantine import Quarantine, Quarantined
from raylens.storage.record import Failure, Record
from raylens.storage.segments import read_line, read_outcome
from raylens.storage.tally import Tally
from raylens.storage.vocabulary import StoredVocabulary, Vocabulary, token_texts

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

    from raylens.storage.drawing import Picture
    from raylens.storage.result import Result
    from raylens.storage.status import Status

T = TypeVar("T")


class Run(DataFrames):
    """One run of a store.

    ``run[prompt_id]`` is a ``Record`` or a ``Failure``, iteration yields them in corpus order, ``prompt_id in run`` tells
    whether one is stored, and ``len(run)`` counts them.

    The run is seen as it was committed when it was first read; only ``counts``, ``failures`` and ``status`` look anew each
    time. ``later`` returns the run as it is now.
    """

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

    def to_str_tokens(self, ids: ArrayLike) -> Any:
        """The texts of token ids: an array of strings of the same shape, or the string of a single id.

        Raises:
            UsageError: the ids are no integers.
            StoreError: the vocabulary is missing or damaged.
        """
        return token_texts(self.vocabulary, ids)

    @cached_property
    def certificate(self) -> dict[str, Any]:
        """What was measured when the model loaded: taps, errors, how the lens is computed. Empty until a model has loaded."""
        return read_certificate(self.folder)

    @cached_property
    def _committed(self) -> Committed:
        return Committed(self.folder)

    @property
    def entries(self) -> list[Entry]:
        """The ledger's entries in corpus order."""
        return self._committed.entries

    def later(self) -> "Run":
        """The run as it is committed now; only what is new in its ledger is read."""
        run = Run(self.folder)
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
        failed = Run(self.folder)
        failed._committed = Committed(self.folder, wanted=lambda entry: entry.failure is not None)
        for entry in failed.entries:
            outcome = failed[entry.id]
            assert isinstance(outcome, Failure)
            yield outcome

    def counts(self) -> dict[str, Any]:
        """How far the run is now, in numbers.

        Returns:
            ``prompts`` (of the corpus), ``records``, ``failures`` (a count for each kind), ``tokens``, and ``complete``.
        """
        tally = Tally(self.folder)  # from the ledger anew, since of ten million prompts nothing should be kept for it
        tally.follow()
        tally.ledger.check_whole()
        return tally.counts(self.manifest.prompts)

    def status(self) -> "Status":
        """How far the run is now, at what rate, and what its driver last reported.

        Raises:
            StoreError: the run is damaged.
        """
        from raylens.storage.status import status

        return status(self.folder)

    @arguments()
    def query(self, name: str, **options: Any) -> "Result":
        """A named query over this run (docs/QUERIES.md), such as ``run.query("token", token=" Paris", layers="5:20", rank=5)``.

        It is computed when the result is read.

        Raises:
            UsageError: there is no such query or option. Other problems are raised when the result is read.
        """
        from raylens.storage.result import run_query

        return run_query(self, name, options)

    def sql(self, sql: str, parameters: Mapping[str, Any] | None = None) -> "Result":
        """A SELECT over the views of this run (docs/QUERIES.md), computed when the result is read.

        Args:
            sql: one statement; parameters are written ``$name``.
            parameters: their values, by name.
        """
        from raylens.storage.result import sql_query

        return sql_query([self], sql, parameters)

    def compare(self, other: "Run") -> "Result":
        """What another run of the same prompts changes, by tap and layer (docs/QUERIES.md)."""
        from raylens.storage.comparison import compare

        return compare(self, other)

    @arguments()
    def plot(
        self,
        prompt_id: str | None = None,
        kind: str | None = None,
        output: str | Path | None = None,
        *,
        stat: str | None = None,
        tap: str | None = None,
        positions: str | int | None = None,
        layer_step: int | None = None,
        token: str | int | Sequence[str | int] = (),
        important: int | None = None,
        important_threshold: float | None = None,
        pages: bool = False,
        against: "Run | None" = None,
        by: str | None = None,
        font: str | Path | None = None,
    ) -> "Picture":
        """Draw a prompt, or without one the whole run. A notebook shows the picture that is returned (docs/PICTURES.md).

        Args:
            prompt_id: the prompt to draw.
            kind: of a prompt ``grid`` (the default), ``rank``, ``trajectory`` or ``attribution``; of a run ``aggregate``, or
                ``compare``, the default with ``against``.
            output: file to write, whose name ends in .png, .svg or .pdf; without one the picture is a PNG in memory.
            against: the run that ``compare`` holds against this one.
            stat, tap, ...: as the options of ``raylens plot``.

        Raises:
            UsageError: a choice does not fit the kind, the run or the prompt, or the file cannot be written.
            StoreError: what is stored is missing or damaged.
        """
        from raylens.storage.drawing import Choices, draw

        by_default = "grid" if prompt_id is not None else "aggregate" if against is None else "compare"
        shown = stat, tap, positions, layer_step, token, important, important_threshold, pages
        return draw(self, prompt_id, Choices(kind or by_default, *shown, against, by, font), output)

    def to_arrow(self) -> "pa.Table":
        """All records as one table with a row for each prompt, tap, layer, position and rank (docs/EXPORTS.md, section Rows).

        Raises:
            StoreError: a segment is damaged.
        """
        from raylens.storage.exports.rows import table

        return table(self)

    def to_xarray(self) -> "xr.Dataset":
        """The arrays of all records with named axes, as ``Record.to_xarray``; ``place`` is a position of a prompt.

        Raises:
            UsageError: xarray is not installed, or the run has no records.
        """
        from raylens.storage.arrays import run_dataset

        return run_dataset(self)

    def quarantine(self) -> list[Quarantined]:
        """The entries of the run's stream that the writer refused, each with its reason."""
        return Quarantine(self.folder).entries()

    def __repr__(self) -> str:
        counts = self.counts()
        failed = counted(sum(counts["failures"].values()), "failure")
        return f"<Run {self.name!r}: {counted(counts['records'], 'record')}, {failed} of {counted(counts['prompts'], 'prompt')}>"

    def _repr_html_(self) -> str:
        from raylens.storage.notebook import run_html

        return run_html(self)
