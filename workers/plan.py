"""Which hooks a lens needs, and whether walking along the residual (walk.py) takes fewer products than reading each tap."""

from dataclasses import dataclass

from raylens.workers.capture import Site, Sites
from raylens.workers.lenses.interface import Place
from raylens.workers.sums import FROM_MID, IN_PARALLEL, TO_MID

#: What a block may do to the residual for its lens to be walked: certified sums (sums.py) -> the taps it consists of.
WALKABLE = {
    frozenset({TO_MID, FROM_MID}): ("attn_out", "resid_mid", "mlp_out", "resid_post"),
    frozenset({IN_PARALLEL}): ("attn_out", "mlp_out", "resid_post"),
}


@dataclass(frozen=True, slots=True)
class WalkPlan:
    """How to walk.

    Attributes:
        sites: of every place whose rows are needed.
        starts: places of residuals from which a walk sets out.
        products: rows a token that are multiplied with the unembedding.
    """

    sites: Sites
    starts: frozenset[Place]
    products: int


def plan_walk(sites: list[dict[str, Site]], sums: dict[str, float], places: list[Place]) -> WalkPlan | None:
    """The plan for the chosen places; None where the blocks cannot be walked or reading each place is as cheap.

    Args:
        sites: for each block, tap -> site.
        sums: that were certified for every block.
        places: (tap, layer) chosen.
    """
    taps = WALKABLE.get(frozenset(sums))
    if taps is None or not all(tap in block for block in sites for tap in taps):
        return None
    layers = sorted({layer for tap, layer in places if tap != "resid_pre"})
    firsts = [layer for layer in layers if layer - 1 not in layers]
    starts = [("resid_post", layer - 1) if layer else ("resid_pre", 0) for layer in firsts]
    if ("resid_pre", 0) in places and ("resid_pre", 0) not in starts:
        starts.append(("resid_pre", 0))
    products = len(starts) + 2 * len(layers)
    if products >= len(places):
        return None
    needed = [*starts, *((tap, layer) for layer in layers for tap in taps)]
    return WalkPlan({(tap, layer): sites[layer][tap] for tap, layer in needed}, frozenset(starts), products)
