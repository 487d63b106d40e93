"""Parquet tables of a segment, for queries: derived from its records, and made again from them at any time (docs/FORMAT.md).

Shapes: L layers, P positions, k tokens a place.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raylens.storage.durable import fsync_folder, new_file
from raylens.storage.layout import RunFolder
from raylens.storage.record import Failure, Record, TapLens
from raylens.storage.statistics import STATISTICS, Form
from raylens.storage.taps import tap_order

#: Version of the tables.
FORMAT = 1
#: The tables of a segment.
KINDS = ("lens", "prompts")
#: Key of the Parquet metadata under which a table says what it is.
ABOUT = "raylens"
#: Steps a nat in the table's logprobs and entropies, which are rounded to save a third of its size; records hold the digits.
LOGPROB_STEPS, ENTROPY_STEPS = 32, 64

#: Of zstd: half the time of level 11 for tables 0.6 % larger; lower ones save less time than they cost room.
LEVEL = 9

_LIST = pa.list_(pa.field("element", pa.uint32(), nullable=False))
_FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
_ARROW = {
    Form("float32"): pa.float32(),
    Form("uint32"): pa.uint32(),
    Form("float32", each_tracked=True): _FLOATS,
    Form("uint32", each_tracked=True): _LIST,
}
#: Columns of statistics, which a run may lack; columns that hold nothing take no room.
COLUMNS = {name: _ARROW[form] for name, form in STATISTICS.items()}
#: Columns that older tables lack.
LATER = frozenset({"best_logprob", "best_rank", "attribution", "next_attribution", "best_attribution", "attribution_error"})
LENS = pa.schema(
    [
        ("tap", pa.string()),
        ("layer", pa.uint16()),
        ("prompt", pa.uint32()),
        ("position", pa.uint32()),
        ("ids", _LIST),
        ("logprobs", _FLOATS),
        ("final_rank", pa.uint16()),
        ("entropy", pa.float32()),
        *COLUMNS.items(),
    ]
)
PROMPTS = pa.schema(
    [
        ("prompt", pa.uint32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("token_ids", _LIST),
        ("positions", _LIST),
        ("tracked", _LIST),
        ("truncated_from", pa.uint32()),
        ("metadata", pa.string()),
        ("failure", pa.string()),
        ("message", pa.string()),
    ]
)
_SPLIT = {"ids.list.element", "logprobs.list.element", "kl", "next_logprob", "best_logprob"}
_DICTIONARY = ["tap", "layer", "prompt", "position", "final_rank", "entropy", "failure"]


class About(msgspec.Struct, frozen=True):
    """What a table's metadata says of it.

    Attributes:
        format: version.
        run: uid of the run.
        kind: of KINDS.
        first, last: the commits whose records are in it.
    """

    format: int
    run: str
    kind: str
    first: int
    last: int


def table_path(folder: RunFolder, stem: str, kind: str) -> Path:
    """The file of one kind of the segment ``stem``."""
    return folder.tables / f"{stem}.{kind}.parquet"


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files, one of each kind, that hold the records of commits ``first`` to ``last``.

    Attributes:
        stem: of their names in the tables' folder, as of the segment's.
    """

    folder: RunFolder
    stem: str
    first: int
    last: int

    def path(self, kind: str) -> Path:
        """The file of one kind."""
        return table_path(self.folder, self.stem, kind)

    def exist(self) -> bool:
        """Whether both are there."""
        return all(self.path(kind).exists() for kind in KINDS)

    def about(self, run: str, kind: str) -> About:
        """What the metadata of one says."""
        return About(FORMAT, run, kind, self.first, self.last)


def lens_table(records: Iterable[Record]) -> pa.Table:
    """A row for each tap, layer, prompt and position, in that order where all records have the same layers."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        for name, tap in record.taps.items():
            groups[tap_order(name), name, *_shapes(tap)].append(record)
    tables = [_rows(key[1], found) for key, found in sorted(groups.items(), key=lambda item: item[0])]
    return pa.concat_tables([LENS.empty_table(), *tables])


def _shapes(tap: TapLens) -> tuple[Any, ...]:
    """What taps share whose rows can be joined; a frame may hold any that is well formed, whatever the run's settings."""
    return tap.layers, tap.ids.shape[2], tuple(sorted((name, values.shape[2:]) for name, values in tap.stats.items()))


def _rows(name: str, records: list[Record]) -> pa.Table:
    taps = [record.taps[name] for record in records]
    ids = np.concatenate([tap.ids for tap in taps], axis=1)
    count = ids.shape[0] * ids.shape[1]
    prompts = np.concatenate([np.full(len(record.positions), record.index, np.uint32) for record in records])
    positions = np.concatenate([np.array(record.positions, np.uint32) for record in records])
    columns = {
        "tap": pa.array([name]).take(pa.array(np.zeros(count, np.int8))),
        "layer": np.repeat(np.array(taps[0].layers, np.uint16), ids.shape[1]),
        "prompt": np.tile(prompts, ids.shape[0]),
        "position": np.tile(positions, ids.shape[0]),
        "ids": _lists(ids.reshape(count, -1), _LIST),
        "logprobs": _lists(_rounded(_joined(taps, "logprobs"), LOGPROB_STEPS).reshape(count, -1), _FLOATS),
        "final_rank": _final_ranks(records, ids),
        "entropy": _rounded(_joined(taps, "entropy"), ENTROPY_STEPS).ravel(),
        **{statistic: _statistic(taps, statistic, kind, count) for statistic, kind in COLUMNS.items()},
    }
    return pa.table(columns, schema=LENS)


def _joined(taps: list[TapLens], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(tap, name) for tap in taps], axis=1)


def _rounded(values: NDArray[Any], steps: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # float32's lowest number, of a token that is ruled out, becomes minus infinity
        return np.asarray(np.round(values.astype(np.float32) * steps) / np.float32(steps), dtype=np.float32)


def _lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """[N, k] as N lists."""
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), kind.value_type), type=kind)


def _final_ranks(records: list[Record], ids: NDArray[np.uint32]) -> pa.Array:
    """[L*P] place of the final prediction among the k tokens, from 1; 0 if not among them, null where unknown or past 65,535."""
    finals = [record.taps["resid_post"].ids[-1, :, 0] if "resid_post" in record.taps else None for record in records]
    known = np.concatenate(
        [np.full(len(record.positions), final is not None) for record, final in zip(records, finals, strict=True)]
    )
    final = np.concatenate(
        [np.zeros(len(record.positions), np.uint32) if one is None else one for record, one in zip(records, finals, strict=True)]
    )
    found = ids == final[None, :, None]
    ranks = np.where(found.any(axis=2), found.argmax(axis=2) + 1, 0).ravel()
    unknown = np.tile(~known, len(ids)) | (ranks > np.iinfo(np.uint16).max)
    return pa.array(ranks.astype(np.uint16), mask=unknown)


def _statistic(taps: list[TapLens], name: str, kind: pa.DataType, count: int) -> pa.Array:
    if name not in taps[0].stats:
        return pa.nulls(count, kind)
    values = np.concatenate([tap.stats[name] for tap in taps], axis=1)
    if values.ndim == 3:
        return _lists(values.reshape(count, -1), kind)
    return known_values(values.ravel(), kind)


def known_values(statistic: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """[N] values of a statistic as a column, null where there is none: NaN, or the rank 0."""
    return pa.array(statistic, kind, mask=np.isnan(statistic) if statistic.dtype.kind == "f" else statistic == 0)


def prompts_table(outcomes: Iterable[Record | Failure]) -> pa.Table:
    """A row for each prompt, in order of the outcomes."""
    return pa.Table.from_pylist([_prompt(outcome) for outcome in outcomes], schema=PROMPTS)


def _prompt(outcome: Record | Failure) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": outcome.index, "id": outcome.id, "metadata": orjson.dumps(outcome.metadata).decode()}
    if isinstance(outcome, Failure):
        return {**row, "failure": outcome.kind, "message": outcome.message}
    record = {name: getattr(outcome, name) for name in ("text", "token_ids", "positions", "tracked", "truncated_from")}
    return {**row, **record}


def write_table(path: Path, tables: Iterator[pa.Table], schema: pa.Schema, about: About) -> None:
    """Write row groups into a new file, durably.

    Args:
        path: must not exist.
        tables: row groups, in order.
        schema: LENS or PROMPTS.
        about: for its metadata.
    """
    names = {field.name for field in schema}
    encodings = {column: "BYTE_STREAM_SPLIT" for column in _SPLIT if column.partition(".")[0] in names}
    with (
        new_file(path) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=[column for column in _DICTIONARY if column in names],
            column_encoding=encodings,
            store_schema=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=max(1, len(table)))
        writer.add_key_value_metadata({ABOUT: msgspec.json.encode(about).decode()})


def write_tables(files: TableFiles, run: str, outcomes: list[Record | Failure]) -> None:
    """Write the tables of a segment, durably. Until a commit names that segment, they are garbage.

    Args:
        run: its uid.
        outcomes: of the segment, in its order.
    """
    files.folder.tables.mkdir(exist_ok=True)
    lens = lens_table(outcome for outcome in outcomes if isinstance(outcome, Record))
    parts = {"lens": (by_tap(lens), LENS), "prompts": (iter([prompts_table(outcomes)]), PROMPTS)}
    for kind, (tables, schema) in parts.items():
        write_table(files.path(kind), tables, schema, files.about(run, kind))
    fsync_folder(files.folder.tables)


def by_tap(table: pa.Table) -> Iterator[pa.Table]:
    """A lens table in parts of one tap each, so that a query for a tap passes over the others."""
    for tap in sorted(pc.unique(table["tap"]).to_pylist(), key=tap_order):
        yield table.filter(pc.equal(table["tap"], tap))
