"""What to read: files, texts, and how to find the prompt in a row."""

from typing import Literal

from raylens.storage.errors import UsageError
from raylens.storage.python_values import Settings
from raylens.workers.settings import check_types

#: ``auto`` goes by the file's extension; ``txt`` is ``paragraphs`` where blank lines separate text, else ``lines``.
Format = Literal["auto", "jsonl", "csv", "parquet", "txt", "lines", "paragraphs"]


class CorpusSettings(Settings, frozen=True):
    """What to read.

    Attributes:
        sources: paths, glob patterns, or ``-`` for standard input, in order.
        texts: prompts given directly, after the sources.
        format: the format of every source.
        column: the key or column that holds the prompt; by default ``text``, ``prompt``, ``content``, ``question`` or ``input``.
        id_column: the key or column that holds the id; by default ``id`` where a row has one.
        limit: stop after this many prompts.
    """

    sources: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    format: Format = "auto"
    column: str | None = None
    id_column: str | None = None
    limit: int | None = None

    def check(self) -> None:
        """Raise UsageError for values that cannot be used."""
        check_types(self)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: leaves no prompt; use 1 or more")
        if self.column is not None and self.column == self.id_column:
            raise UsageError(
                f"--column {self.column!r}: cannot be both the prompt and its id; name another column with --id-column"
            )
