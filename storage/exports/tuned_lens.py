"""Means over a run by layer, in the shape of tuned-lens's ``aggregate_metrics.json`` (tuned_lens/scripts/eval_loop.py there).

There ``layer_j`` is the input of block j: ``layer_0`` is the embedding, ``layer_j`` our resid_post of layer j - 1, and the
last block's output is the ``baseline``.
"""

import math
from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from raylens.storage.certificate import model_layers
from raylens.storage.record import Record
from raylens.storage.run import Run

#: What of the baseline is told; its KL to itself is 0.
BASELINE = ("ce", "entropy")


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: NDArray[Any]) -> None:
        known = values[~np.isnan(values)].astype(np.float64)
        self.total += float(known.sum())
        self.count += known.size


def write(run: Run, file: BinaryIO) -> None:
    """Write one JSON object.

    Raises:
        StoreError: a segment is damaged.
    """
    file.write(orjson.dumps(aggregate(run), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def aggregate(run: Run) -> dict[str, Any]:
    """By the kind of lens, as ``logit`` or ``tuned``, and ``baseline``: metric -> layer -> mean in nats; and ``raylens``.

    Cross-entropy and KL are there where the run has them (``--stats next_logprob,kl``), the embedding where it has resid_pre.
    """
    means: dict[str, dict[str, _Mean]] = defaultdict(lambda: defaultdict(_Mean))
    records = tokens = size = 0
    for record in run.records():
        _add(means, record, model_layers(run.certificate, max(record.layers)))
        records += 1
        tokens += len(record.token_ids)
        size += sum(len(run.vocabulary[token] or b"") for token in record.token_ids)
    found = {
        metric: {layer: mean.total / mean.count for layer, mean in layers.items() if mean.count}
        for metric, layers in means.items()
    }
    logit = {metric: {layer: mean for layer, mean in layers.items() if layer != "final"} for metric, layers in found.items()}
    kind = run.manifest.lens_kind
    return {
        kind: {metric: layers for metric, layers in logit.items() if layers},
        "baseline": {name: {"final": found[name]["final"]} for name in BASELINE if "final" in found.get(name, {})},
        "raylens": {
            "run": run.name,
            "model": str(run.manifest.sources.get("model", "")),
            "lens": kind,
            "edited": run.manifest.edited,
            "records": records,
            "places": {metric: max(mean.count for mean in layers.values()) for metric, layers in means.items()},
            "unit": "nats",
            "nats_to_bpb": tokens / size / math.log(2) if size else None,
        },
    }


def _add(means: dict[str, dict[str, _Mean]], record: Record, layers: int) -> None:
    for tap, inputs in (("resid_pre", 0), ("resid_post", 1)):
        lens = record.taps.get(tap)
        if lens is None:
            continue
        for row, layer in enumerate(lens.layers):
            name = "final" if layer + inputs == layers else f"layer_{layer + inputs}"
            means["entropy"][name].add(lens.entropy[row])
            if "next_logprob" in lens.stats:
                means["ce"][name].add(-lens.stats["next_logprob"][row])
            if "kl" in lens.stats:
                means["kl"][name].add(lens.stats["kl"][row])
