"""How another run differs from one, layer by layer, over the places that both have."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylens.storage.charts.stack import Chart, Curve, Panels, Plot, drawn_taps, series
from raylens.storage.comparison import compare
from raylens.storage.labels import fit_apart, text_label
from raylens.storage.plots.panel import share_axis, signed_axis
from raylens.storage.run import Run

_SIGNED = (
    ("entropy_change", "mean entropy in nats, {other} less {one}"),
    ("logprob_change", "mean logprob in nats of {one}'s top token, {other} less {one}"),
    ("next_logprob_change", "mean logprob in nats of the prompt's next token, {other} less {one}"),
    ("kl_change", "mean KL to the final prediction in nats, {other} less {one}"),
    ("shift", "mean number of layers by which {other} decides later, by the layer where {one} decides"),
)
_NAME_CELLS = 20  # of a run's name in a label, beside another's


def compared(one: Run, other: Run) -> Chart:
    """Ask both runs and arrange the answers.

    Raises:
        UsageError: they have nothing to compare.
    """
    rows = compare(one, other).rows()
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["tap"]].append(row)
    names = drawn_taps(groups)
    layers = sorted({row["layer"] for name in names for row in groups[name]})
    plots = [
        Plot(share_axis("share of places where both have the same top token"), _curves(groups, names, "agreement", layers)),
        Plot(share_axis("share of the top k tokens that both have"), _curves(groups, names, "overlap", layers)),
    ]
    short_one, short_other = fit_apart([text_label(one.name), text_label(other.name)], _NAME_CELLS)
    for column, label in _SIGNED:
        curves = _curves(groups, names, column, layers)
        known = np.concatenate([curve.values for curve in curves])
        if np.isfinite(known).any():
            text = label.format(one=short_one, other=short_other)
            farthest = float(np.nanmax(np.abs(known)))
            plots.append(Plot(signed_axis(text, farthest), curves))
    places = max(row["places"] for row in rows)
    return Chart(
        heading=f"{_name(one)} against {_name(other)}",
        captions=(f"{places:,} places per layer that both runs have; layers are those of {one.name}",),
        panels=Panels(layers, plots, names),
    )


def _name(run: Run) -> str:
    return f"run {run.name} ({run.manifest.title})"


def _curves(groups: Mapping[str, list[dict[str, Any]]], names: Sequence[str], column: str, layers: Sequence[int]) -> list[Curve]:
    return [Curve(series(groups[name], column, layers)) for name in names]
