"""Which layers matter at a position, by two rules: where the prediction moves, and LogitLens4LLMs's threshold."""

import numpy as np
from numpy.typing import NDArray

from raylens.storage.errors import UsageError
from raylens.storage.important import SURE, sure_layers
from raylens.storage.plots.canvas import Array
from raylens.storage.plots.request import Request, prediction
from raylens.storage.plots.standing import ranks
from raylens.storage.record import Record, TapLens


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
    steps = np.log(_predicted_ranks(record, lens, final.ids)[order, column])
    changes = np.abs(np.diff(steps, prepend=steps[:1]))
    # of like changes the later layers, which are nearer to the answer
    best = sorted(range(len(order)), key=lambda at: (changes[at], at))[-count:]
    return {lens.layers[order[at]] for at in best}


def _predicted_ranks(record: Record, lens: TapLens, ids: NDArray[np.uint32]) -> Array:
    """[L, P] ranks of the predicted tokens, among all tokens where the run has stored them."""
    stored = lens.stats.get("best_rank")
    if stored is None:
        return ranks(record, lens, ids)
    # It is of what the model's last layer predicts: of these tokens only if they come first by it too.
    same = stored[np.argmax(lens.layers)] == 1
    return np.where(same, stored, ranks(record, lens, ids))


def _sure(record: Record, column: int, threshold: float) -> set[int]:
    found = sure_layers(record, column, threshold)
    if not found:
        raise UsageError(f"--important-threshold {threshold:g}: no layer of prompt {record.id!r} has a token of more; give less")
    return found
