"""What fitting came to: the divergence from the final prediction at each layer, on text that nothing was fitted to."""

import msgspec


class LayerReport(msgspec.Struct, frozen=True):
    """One place.

    Attributes:
        tap, layer: of the residual that the map reads.
        kl_before, kl_after: mean KL(final || place) in nats on held-out text, by the logit lens and by the fitted one.
        chosen: which map was best on the validation part: ``identity``, ``ridge P`` with penalty P, or ``trained``.
    """

    tap: str
    layer: int
    kl_before: float
    kl_after: float
    chosen: str


class FitReport(msgspec.Struct, frozen=True):
    """A fitted lens.

    Attributes:
        lens: what ``--lens`` reads it by.
        layers: in the order of the model; the last block's output has no map and is left out.
        tokens: in positions, by part: fit, validation, held_out.
        prompts: by part, and ``skipped`` for those that could not be tokenized or had one token.
    """

    lens: str
    layers: list[LayerReport]
    tokens: dict[str, int]
    prompts: dict[str, int]
