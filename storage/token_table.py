"""The table ``tokens`` that views join: each vocabulary of some runs once, as rows that are made while a statement reads them."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raylens.storage.run import Run
from raylens.storage.vocabulary import Vocabulary, token_text, vocabulary_digest

#: Tokens that are made into rows at a time.
_PART = 1 << 14
_SCHEMA = pa.schema([("vocabulary", pa.uint32()), ("token_id", pa.uint32()), ("token", pa.string()), ("bytes", pa.binary())])


class TokenTable:
    """A row for each token of each vocabulary, as a stream (an Arrow PyCapsule) that DuckDB asks for when a statement needs it.

    Few statements need it, and 262,144 tokens take 33 MB: for each of many runs that is more than their tables.
    """

    def __init__(self) -> None:
        self._vocabularies: list[Vocabulary] = []
        self._known: dict[bytes, int] = {}
        self._kept: list[pa.RecordBatch] | None = None

    def add(self, run: Run) -> int:
        """Which vocabulary is the run's, from 0.

        Raises:
            StoreError: it is missing or damaged.
        """
        digest = vocabulary_digest(run.folder.vocabulary)
        if digest not in self._known:
            self._vocabularies.append(run.vocabulary)
            self._known[digest] = len(self._known)
        return self._known[digest]

    def __arrow_c_schema__(self) -> Any:
        return _SCHEMA.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """A new stream of all rows."""
        if len(self._vocabularies) == 1 and self._kept is None:
            self._kept = list(self._batches())  # a statement may read it several times; of many it is too much
        return pa.RecordBatchReader.from_batches(_SCHEMA, self._kept or self._batches()).__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for number, tokens in enumerate(self._vocabularies):
            for start in range(0, len(tokens), _PART):
                yield _part(number, tokens, range(start, min(start + _PART, len(tokens))))


def _part(number: int, tokens: Vocabulary, ids: range) -> pa.RecordBatch:
    texts = [token_text(tokens, one) for one in ids]
    columns = ([number] * len(ids), ids, texts, tokens[ids.start : ids.stop])
    return pa.record_batch([pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
