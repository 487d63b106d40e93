"""Which places are read out at a position: the taps by layer."""


def layers_of(tap: str, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a tap: the embedding's is of layer 0 only."""
    return (0,) if tap == "resid_pre" else layers


def chosen_places(taps: tuple[str, ...], layers: tuple[int, ...]) -> frozenset[tuple[str, int]]:
    """(tap, layer) of all that is read out at a position."""
    return frozenset((tap, layer) for tap in taps for layer in layers_of(tap, layers))
