"""LogitLens4LLMs's rule of which layers matter: those in which a part is sure of a token."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylens.storage.record import Record

#: Whose tokens the rule is about, and of how many percent a token must have more.
SURE, THRESHOLD = ("attn_out", "mlp_out", "resid_post"), 3


def sure_layers(record: "Record", column: int, threshold: float = THRESHOLD) -> set[int]:
    """Layers in which one of the taps has a token of more than so many whole percents, which are cut off and not rounded.

    Args:
        column: number of the position among the lensed ones.
    """
    import numpy as np  # here, as commands take their default from this module

    found: set[int] = set()
    for tap in SURE:
        if tap in record.taps:
            lens = record.taps[tap]
            percents = np.floor(np.exp(lens.logprobs[:, column, 0].astype(np.float64)).astype(np.float32) * 100)
            found |= {layer for layer, percent in zip(lens.layers, percents, strict=True) if percent > threshold}
    return found
