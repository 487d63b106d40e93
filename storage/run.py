"""One run of a store read back: its records, failures, queries and pictures; needs no torch, ray or redis."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from raylens.storage.arguments import arguments
from raylens.storage.certificate import read_certificate
from raylens.storage.counted import counted
from raylens.storage.dataframes import DataFrames
from raylens.storage.outcomes import Outcomes
from raylens.storage.paths import given_path
from raylens.storage.quarantine import Quarantine, Quarantined
from raylens.storage.tally import Tally
from raylens.storage.vocabulary import token_texts

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

    from raylens.storage.drawing import Picture
    from raylens.storage.result import Result
    from raylens.storage.status import Status


class Run(Outcomes, DataFrames):
    """One run of a store.

    ``run[prompt_id]`` is a ``Record`` or a ``Failure``, iteration yields them in corpus order, ``prompt_id in run`` tells
    whether one is stored, and ``len(run)`` counts them.

    The run is seen as it was committed when it was first read; only ``counts``, ``failures`` and ``status`` look anew each
    time. ``later`` returns the run as it is now.
    """

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

    @arguments()
    def export(
        self,
        output: str | Path,
        format: str | None = None,  # noqa: A002  the name of the option
        prompt_id: str | None = None,
        positions: str | int | None = None,
    ) -> None:
        """Write the run for other tools, or one prompt as a page to explore, as ``raylens export`` (docs/EXPORTS.md).

        Args:
            output: file, or folder for a format of several files.
            format: by default as the name says: .parquet, .csv, .html, otherwise jsonl.
            prompt_id: of the prompt that ``html`` shows, or of which ``logitlens4llms`` has the generated steps.
            positions: those that the page shows; by default all.

        Raises:
            UsageError: what is asked does not go together or with the run, or a file cannot be written.
            StoreError: a segment is damaged.
        """
        from raylens.storage.exporting import export, kind_of

        path = given_path(output, "output")
        export(self, path, kind_of(path) if format is None else format, prompt_id, positions)

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
