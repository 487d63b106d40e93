"""Which layers matter at a position, by two rules: where the prediction moves, and LogitLens4LLMs's threshold."""

import numpy as np

from raylens.storage.errors import NotDrawn, UsageError
from raylens.storage.important import SURE, sure_layers
from raylens.storage.plots.request import Request, prediction
from raylens.storage.plots.standing import ranks
from raylens.storage.record import Record


def important_layers(record: Record, request: Request, column: int) -> tuple[set[int], str]:
    """The layers to show, and by which rule, in words; all of them and nothing where neither rule was asked for.

    Args:
        column: number of the position among the lensed ones.

    Raises:
        UsageError: both rules were asked for, or no layer passes.
    """
    if request.important is not None and request.threshold is not None:
        raise UsageError("--important and --important-threshold are two rules; choose one")
    if request.important is not None:
        return _moved(record, column, request.important), "those where the predicted token's rank changes most"
    if request.threshold is not None:
        words = f"those where a token of {', '.join(SURE)} has more than {request.threshold:g} %"
        return _sure(record, column, request.threshold), words
    return set(record.layers), ""


def _moved(record: Record, column: int, count: int) -> set[int]:
    """The layers at whose output the predicted token's rank is the most times higher or lower than a layer before."""
    final = prediction(record)
    lens = record.taps[final.tap]
    order = np.argsort(lens.layers)
    steps = np.log(ranks(record, lens, final.ids)[order, column])
    changes = np.abs(np.diff(steps, prepend=steps[:1]))
    # of like changes the later layers, which are nearer to the answer
    best = sorted(range(len(order)), key=lambda at: (changes[at], at))[-count:]
    return {lens.layers[order[at]] for at in best}


def _sure(record: Record, column: int, threshold: float) -> set[int]:
    found = sure_layers(record, column, threshold)
    if not found:
        raise NotDrawn(f"--important-threshold {threshold:g}: no layer of prompt {record.id!r} has a token of more; give less")
    return found
