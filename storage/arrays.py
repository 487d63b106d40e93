"""Records as arrays with named axes, in xarray.

Shapes: T taps, P positions, L layers of any tap, k ranks, M tracked tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raylens.storage.dataframes import library
from raylens.storage.errors import UsageError
from raylens.storage.record import Record, TapLens

if TYPE_CHECKING:
    import xarray as xr

    from raylens.storage.run import Run

_PLACE = ("tap", "position", "layer")


def record_dataset(record: Record) -> "xr.Dataset":
    """The arrays of a record.

    Returns:
        ``ids`` [T, P, L, k] int64 and ``logprobs`` float32; ``logsumexp`` and ``entropy`` [T, P, L]; statistics [T, P, L] or
        [T, P, L, M]. Where a tap has not got a layer, as ``resid_pre``, or a statistic, ids are -1, ranks 0, other numbers
        NaN. Beside the axes' own coordinates, ``token_id`` and ``token`` are the prompt's.

    Raises:
        UsageError: xarray is not installed.
    """
    layers = sorted({layer for tap in record.taps.values() for layer in tap.layers})
    variables = {
        "ids": ((*_PLACE, "rank"), _joined(record, layers, lambda tap: tap.ids, absent=-1)),
        "logprobs": ((*_PLACE, "rank"), _joined(record, layers, lambda tap: tap.logprobs)),
        "logsumexp": (_PLACE, _joined(record, layers, lambda tap: tap.logsumexp)),
        "entropy": (_PLACE, _joined(record, layers, lambda tap: tap.entropy)),
    }
    for name, values in record.statistics.items():
        axes = _PLACE if values.ndim == 2 else (*_PLACE, "tracked")
        variables[name] = (axes, _joined(record, layers, lambda tap, name=name: tap.stats.get(name)))
    coordinates = {
        "tap": list(record.taps),
        "position": record.positions,
        "layer": layers,
        "rank": np.arange(1, variables["ids"][1].shape[-1] + 1),
        "token_id": ("position", [record.token_ids[position] for position in record.positions]),
        "token": ("position", [record.tokens[position] for position in record.positions]),
        **({"tracked": record.tracked} if record.tracked else {}),
    }
    about = {"id": record.id, "index": record.index, "text": record.text}
    return library("xarray").Dataset(variables, coordinates, about)


def _joined(record: Record, layers: list[int], read: Callable[..., NDArray[Any] | None], absent: int = 0) -> NDArray[Any]:
    """[T, P, L, ...] of one array of every tap that has it; integers become int64 and floats float32."""
    taps: list[TapLens] = list(record.taps.values())
    arrays = [read(tap) for tap in taps]
    first = next(array for array in arrays if array is not None)
    whole = first.dtype.kind in "iu"
    shape = (len(taps), len(record.positions), len(layers), *first.shape[2:])
    joined = np.full(shape, absent if whole else np.nan, np.int64 if whole else np.float32)
    for number, (tap, array) in enumerate(zip(taps, arrays, strict=True)):
        if array is not None:
            joined[number][:, [layers.index(layer) for layer in tap.layers]] = array.swapaxes(0, 1)
    return joined


def run_dataset(run: "Run") -> "xr.Dataset":
    """The arrays of all records, joined along ``place``; ``prompt`` (its index), ``id`` and ``position`` say which place it is.

    Where prompts track tokens of their own, ``tracked`` is a token's number from 1, and ``tracked_id`` [place, tracked] its id.

    Raises:
        UsageError: xarray is not installed, or the run has no records.
    """
    xarray = library("xarray")
    parts = [_places(record) for record in run.records()]
    if not parts:
        raise UsageError(f"run {run.name!r} has no records yet")
    if len({tuple(part["tracked"].values.tolist()) for part in parts if "tracked" in part.coords}) > 1:
        parts = [_numbered(part) for part in parts]
    return xarray.concat(
        parts, "place", data_vars="all", coords="minimal", compat="override", join="outer", combine_attrs="drop"
    ).transpose("tap", "place", "layer", ...)


def _places(record: Record) -> "xr.Dataset":
    dataset = record_dataset(record).reset_index("position").rename_dims(position="place")
    count = len(record.positions)
    return dataset.assign_coords(prompt=("place", [record.index] * count), id=("place", [record.id] * count))


def _numbered(part: "xr.Dataset") -> "xr.Dataset":
    """With the tokens tracked along numbers; their ids differ from prompt to prompt, and two may be the same."""
    ids = part["tracked"].values
    each = np.broadcast_to(ids, (part.sizes["place"], len(ids)))
    return part.assign_coords(tracked=np.arange(1, len(ids) + 1), tracked_id=(("place", "tracked"), each))
