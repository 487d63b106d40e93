"""Whether the lens may be read out as running sums (walk.py), measured against float64 on the probe prompt."""

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from raylens.workers.blocks import device_of
from raylens.workers.capture import Site
from raylens.workers.linear import LinearNorm, find_linear_norm
from raylens.workers.plan import WALKABLE
from raylens.workers.probe import BlockProbe
from raylens.workers.product import Unembedding
from raylens.workers.projection import Projection
from raylens.workers.running import may_compile
from raylens.workers.tolerances import of_logits
from raylens.workers.walk import Walk

#: Largest difference of a logit from float64, at logits of ordinary size; for larger ones, as many times it.
ALLOWED = 2e-4
#: Entries of the vocabulary on which that is measured.
_ENTRIES = 2048


@torch.inference_mode()
def find_walk(
    projection: Projection, probes: list[BlockProbe], sites: list[dict[str, Site]], sums: dict[str, float]
) -> Walk | None:
    """The walk, where blocks, norm and head allow it and it is exact enough; else None.

    Args:
        projection: the certified read-out.
        probes: what every block did on the probe prompt.
        sites: for each block, tap -> site.
        sums: that hold in every block.
    """
    unembedding, cpu = projection.unembedding, torch.device("cpu")
    taps = WALKABLE.get(frozenset(sums))
    if taps is None or unembedding is None or unembedding.head.weight.dtype != torch.float32 or not may_compile(cpu, 1):
        return None
    head = unembedding.head
    if device_of(head, cpu) != cpu or device_of(projection.norm, cpu) != cpu or probes[0].input.dtype != torch.float32:
        return None
    if not all(tap in block for block in sites for tap in taps):
        return None
    added = [[_written(block[tap], probe) for tap in ("attn_out", "mlp_out")] for block, probe in zip(sites, probes, strict=True)]
    terms = [probes[0].input, *(term for pair in added for term in pair)]
    norm = find_linear_norm(projection.norm, torch.cat([*terms, *(probe.output for probe in probes)]))
    if norm is None:
        return None
    error, size = _error(norm, unembedding, terms, [probe.output for probe in probes])
    if not error <= of_logits(ALLOWED, size):
        return None
    return Walk(norm, unembedding, projection.step, error)


def _written(site: Site, probe: BlockProbe) -> Tensor:
    value = probe.outputs[site.name]
    return value if site.scale == 1.0 else value * site.scale


def _error(norm: LinearNorm, unembedding: Unembedding, terms: list[Tensor], residuals: list[Tensor]) -> tuple[float, float]:
    """Largest difference between the logits of the stored residuals in float64 and as sums, and the largest logit."""
    with align_module_device(unembedding.head):
        whole = unembedding.head.weight
        weight = whole[:: max(1, len(whole) // _ENTRIES)].clone()
    multiply = unembedding.multiplier(weight)
    wide = LinearNorm(norm.gain.double(), norm.bias.double(), norm.eps, norm.centred)
    running, error, size = multiply(norm.weighted(terms[0])), 0.0, 0.0
    for first, second, residual in zip(terms[1::2], terms[2::2], residuals, strict=True):
        for term in (first, second):
            running = running + multiply(norm.weighted(term))
        found = running * norm.scale(residual).unsqueeze(1)
        exact = (wide(residual.double()) - wide.bias) @ weight.double().T
        gap = float((found - exact).abs().max())
        error = gap if gap > error or gap != gap else error
        size = max(size, float(exact.abs().max()))
    return error, size
