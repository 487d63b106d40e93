"""A run as one table: a row for each prompt, tap, layer, position and rank, with the record's own numbers (docs/EXPORTS.md)."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raylens.storage.record import Record, TapLens
from raylens.storage.run import Run
from raylens.storage.tables import COLUMNS, known_values
from raylens.storage.vocabulary import Vocabulary, token_text

_WORD = pa.dictionary(pa.int32(), pa.string())  # the same for many rows
#: Columns of a place, repeated for each rank; null where a run has not got the statistic or a place no next token.
_STATISTICS = {name: COLUMNS[name] for name in ("kl", "next_logprob", "next_rank", "best_logprob", "best_rank")}
ROWS = pa.schema(
    [
        ("prompt", pa.uint32()),
        ("id", _WORD),
        ("tap", _WORD),
        ("layer", pa.uint16()),
        ("position", pa.uint32()),
        ("rank", pa.uint16()),
        ("token_id", pa.uint32()),
        ("token", pa.string()),
        ("logprob", pa.float32()),
        ("entropy", pa.float32()),
        *_STATISTICS.items(),
    ]
)


def table(run: Run) -> pa.Table:
    """All rows of a run."""
    return pa.Table.from_batches(batches(run), ROWS).unify_dictionaries()


def batches(run: Run) -> Iterator[pa.RecordBatch]:
    """The rows of each record, in corpus order, a batch for each tap.

    Raises:
        StoreError: a segment is damaged.
    """
    for record in run.records():
        for name, tap in record.taps.items():
            yield _batch(record, name, tap, run.vocabulary)


def _batch(record: Record, name: str, tap: TapLens, vocabulary: Vocabulary) -> pa.RecordBatch:
    layers, positions, k = tap.ids.shape
    count = tap.ids.size
    columns = {
        "prompt": np.full(count, record.index, np.uint32),
        "id": _constant(record.id, count),
        "tap": _constant(name, count),
        "layer": np.repeat(np.array(tap.layers, np.uint16), positions * k),
        "position": np.tile(np.repeat(np.array(record.positions, np.uint32), k), layers),
        "rank": np.tile(np.arange(1, k + 1, dtype=np.uint16), layers * positions),
        "token_id": tap.ids.ravel(),
        "token": _texts(tap.ids.ravel(), vocabulary),
        "logprob": tap.logprobs.ravel().astype(np.float32),
        "entropy": np.repeat(tap.entropy.ravel(), k),
        **{statistic: _statistic(tap, statistic, kind, k) for statistic, kind in _STATISTICS.items()},
    }
    return pa.record_batch(columns, schema=ROWS)


def _constant(word: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([word], pa.string()))


def _texts(ids: NDArray[np.uint32], vocabulary: Vocabulary) -> pa.Array:
    different, which = np.unique(ids, return_inverse=True)
    return pa.array([token_text(vocabulary, int(token)) for token in different], pa.string()).take(pa.array(which))


def _statistic(tap: TapLens, name: str, kind: pa.DataType, k: int) -> pa.Array:
    if name not in tap.stats:
        return pa.nulls(tap.ids.size, kind)
    return known_values(np.repeat(tap.stats[name].ravel(), k), kind)
