"""V2 data of the logitlenskit widget, a line a record (https://github.com/davidbau/logitlenskit, docs/DATA_FORMAT.md there).

Shapes: L layers, P positions, k tokens.
"""

from typing import Any, BinaryIO

import numpy as np
import orjson

from raylens.storage.errors import UsageError
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.vocabulary import token_text

#: Decimals of a probability, as the widget's own exporter keeps them.
DECIMALS = 5


def write(run: Run, file: BinaryIO) -> None:
    """Write the lens of the block outputs.

    Raises:
        UsageError: the run has no resid_post.
        StoreError: a segment is damaged.
    """
    for record in run.records():
        file.write(orjson.dumps(widget_data(run, record), option=orjson.OPT_APPEND_NEWLINE))


def widget_data(run: Run, record: Record) -> dict[str, Any]:
    """What the widget takes: the tokens read, the k best of each layer, and for each position every such token over the layers.

    Raises:
        UsageError: the record has no resid_post.
    """
    if "resid_post" not in record.taps:
        raise UsageError(f"run {run.name!r} has no resid_post, which this format shows; it has {', '.join(record.taps)}")
    lens = record.taps["resid_post"]
    names = {int(token): token_text(run.vocabulary, int(token)) for token in np.unique(lens.ids)}
    topk = [[[names[token] for token in place] for place in layer] for layer in lens.ids.tolist()]
    probabilities = np.round(np.exp(lens.logprobs.astype(np.float64)), DECIMALS).tolist()
    return {
        "meta": {
            "version": 2,
            "timestamp": run.manifest.created,
            "model": str(run.manifest.sources.get("model", "")),
            "prompt": record.id,
        },
        "layers": list(lens.layers),
        "input": [token_text(run.vocabulary, record.token_ids[position]) for position in record.positions],
        "tracked": [_trajectories(topk, probabilities, at) for at in range(len(record.positions))],
        "topk": topk,
    }


def _trajectories(topk: list[list[list[str]]], probabilities: list[list[list[float]]], at: int) -> dict[str, list[float]]:
    """Token -> [L] its probability at one position; 0 where it is not among the k best. Of tokens of one text the best counts."""
    found: dict[str, list[float]] = {}
    for layer, (tokens, values) in enumerate(zip(topk, probabilities, strict=True)):
        for token, value in zip(tokens[at], values[at], strict=True):
            trajectory = found.setdefault(token, [0.0] * len(topk))
            trajectory[layer] = max(trajectory[layer], value)
    return found
