"""LogitLens4LLMs's whole percents, and its rule of which layers matter: those in which a part is sure of a token."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raylens.storage.record import Record

#: Whose tokens the rule is about, and of how many percent a token must have more.
SURE, THRESHOLD = ("attn_out", "mlp_out", "resid_post"), 3


def whole_percents(logprobs: "NDArray[np.floating]") -> "NDArray[np.int64]":
    """Of float32 probabilities, as a softmax gives them, and cut off, not rounded. Of any shape."""
    import numpy as np  # here, as commands take their default from this module

    return (np.exp(logprobs.astype(np.float64)).astype(np.float32).astype(np.float64) * 100).astype(np.int64)


def sure_layers(record: "Record", column: int, threshold: float = THRESHOLD) -> set[int]:
    """Layers in which one of the taps has a token of more than so many whole percents.

    Args:
        column: number of the position among the lensed ones.
    """
    found: set[int] = set()
    for tap in SURE:
        if tap in record.taps:
            lens = record.taps[tap]
            percents = whole_percents(lens.logprobs[:, column, 0])
            found |= {layer for layer, percent in zip(lens.layers, percents, strict=True) if percent > threshold}
    return found
