"""A run at a glance: agreement with the final prediction, entropy and KL by layer and tap, as curves and as maps, and where
predictions are decided."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylens.storage.charts import depth, undrawn, values_of
from raylens.storage.charts.stack import Chart, Curve, Map, Panels, Plot, drawn_taps, series
from raylens.storage.database import Database
from raylens.storage.errors import UsageError
from raylens.storage.labels import fit_apart, text_label
from raylens.storage.plots.panel import share_axis, upward_axis
from raylens.storage.plots.scales import entropy_scale, kl_scale, prob_scale
from raylens.storage.result import ask
from raylens.storage.run import Run

#: Rows by tap, or by value of the key, None for prompts that lack it.
_Groups = Mapping[Any, list[dict[str, Any]]]
_MEDIANS = {"entropy": "median entropy in nats", "kl": "median KL to the final prediction in nats"}
_NAME_CELLS = 16  # of a value in a label, before the number of its places


def aggregate(run: Run, by: str | None = None, positions: str | None = None) -> Chart:
    """Ask the run and arrange the answers.

    Args:
        by: a metadata key whose values are drawn apart, of the last tap of a block that was lensed.
        positions: those that are counted, as queries take them.

    Raises:
        UsageError: the run has no records, or none that can be drawn; the key has too many values, or no prompt has it.
    """
    chosen = {name: given for name, given in (("by", by), ("positions", positions)) if given is not None}
    with Database([run]) as database:
        if by is not None and (why := undrawn(by, values_of(run, database, by))):
            raise UsageError(why)
        rows, decided = ask(run, database, "layers", chosen), depth(run, database, chosen)
    if not rows:  # a run without records is refused by the query
        raise UsageError(f"--positions {positions}: none of them was lensed in run {run.name!r}")
    if by is not None:
        last = drawn_taps(dict.fromkeys((row["tap"] for row in rows), ()))[-1]
        rows = [row for row in rows if row["tap"] == last]
    groups: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["tap"] if by is None else row["split"]].append(row)
    names = drawn_taps(groups) if by is None else sorted(groups, key=lambda value: (value is not None, value or ""))
    layers = sorted({row["layer"] for name in names for row in groups[name]})
    banded = by is None and "resid_post" in names
    plots = [_agreement(groups, names, layers), *(_medians(groups, names, layers, one, banded) for one in ("entropy", "kl"))]
    plots.append(_depth(decided, layers, names if by is not None else None))
    counts = run.counts()
    places = sum(_places(group) for group in (groups.values() if by else [rows]))
    labels = _labels(groups, names) if by is not None else {name: name for name in names}
    caption = f"{counts['records']:,} prompts, {places:,} places per layer"
    caption += (f"; positions {text_label(positions)}" if positions else "") + (
        f"; by {text_label(by)}, tap {last}; n: places of each value" if by else ""
    )
    return Chart(
        heading=f"{run.manifest.title} · run {run.name}",
        captions=(caption, *(["band: 10 to 90 % of the places, of resid_post"] if banded else [])),
        panels=Panels(layers, [plot for plot in plots if plot is not None], list(labels.values()), _maps(groups, labels, layers)),
    )


def _maps(groups: _Groups, labels: Mapping[str | None, str], layers: Sequence[int]) -> list[Map]:
    """What can be seen of all taps at once: means, without the rows and the maps of what the run does not have."""
    maps = []
    for column, scale in (
        ("agreement", prob_scale("share of places where the top token is the final prediction")),
        ("entropy", entropy_scale("mean entropy in nats, scale ends at 12")),
        ("kl", kl_scale("mean KL to the final prediction in nats, log scale")),
    ):
        rows = {name: series(groups[name], column, layers) for name in labels}
        known = [name for name, values in rows.items() if np.isfinite(values).any()]
        if known:
            maps.append(Map(scale, [labels[name] for name in known], np.array([rows[name] for name in known])))
    return maps


def _labels(groups: _Groups, values: Sequence[str | None]) -> dict[str | None, str]:
    """Of the values of the key, which prompts that lack it do not have, with how many places are theirs."""
    texts = fit_apart(["(none)" if value is None else text_label(value) for value in values], _NAME_CELLS)
    return {value: f"{text}, n={_places(groups[value]):,}" for value, text in zip(values, texts, strict=True)}


def _places(rows: Sequence[Mapping[str, Any]]) -> int:
    """Of a layer, the most of any."""
    return max(int(row["places"]) for row in rows)


def _agreement(groups: _Groups, names: Sequence[str | None], layers: Sequence[int]) -> Plot | None:
    curves = [Curve(series(groups[name], "agreement", layers)) for name in names]
    if all(np.isnan(curve.values).all() for curve in curves):
        return None
    return Plot(share_axis("share of places where the top token is the final prediction"), curves)


def _medians(groups: _Groups, names: Sequence[str | None], layers: Sequence[int], column: str, banded: bool) -> Plot | None:
    """Of entropy or KL; for resid_post with its band: several would hide each other."""
    curves = []
    for name in names:
        low, middle, high = (series(groups[name], f"{column}_{part}", layers) for part in (10, 50, 90))
        curves.append(Curve(middle, (low, high) if banded and name == "resid_post" else None))
    if all(np.isnan(curve.values).all() for curve in curves):
        return None
    return Plot(upward_axis(_MEDIANS[column], _highest(curves)), curves)


def _highest(curves: Sequence[Curve]) -> float:
    drawn = [values for curve in curves for values in (curve.values, *(curve.band or ()))]
    return float(np.nanmax(drawn))


def _depth(rows: Sequence[Mapping[str, Any]], layers: Sequence[int], values: Sequence[str | None] | None) -> Plot | None:
    if not rows:
        return None
    groups: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row.get("split")].append(row)
    curves = [Curve(series(groups[value], "stable_share", layers)) for value in ([None] if values is None else values)]
    if values is not None:
        return Plot(share_axis("share of places decided for good by this layer"), curves)
    at_layer = np.diff(curves[0].values, prepend=0.0)
    return Plot(share_axis("share of places decided for good at this layer (bars) and by it (line)"), curves, at_layer)
