"""Which modules of a block write to the residual, found by checking sums on what the probe recorded.

Four kinds of block are known, tried in this order; any other is refused with how far off the closest sum was:
    in turn       TO_MID and FROM_MID
    MLP alone     FROM_MID, where what led to resid_mid is no one module's output
    in parallel   IN_PARALLEL
    one write     ONE_WRITE of attention or of the MLP
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from raylens.workers.blocks import ATTENTION_NAMES, BLOCK_SCALES, MLP_NAMES, WRITE_SCALES, numbers, submodules
from raylens.workers.capture import Site
from raylens.workers.probe import BlockProbe
from raylens.workers.tolerances import tolerance

#: How far from 1 the factor may be with which a term stands in a sum, by least squares. Rounding in a short type could
#: hide a term that is missing or scaled in any one number, but not in all of them together.
_FACTOR_TOLERANCE = 0.01

#: What may be found to hold, in the words of the certificate.
TO_MID = "resid_pre + attn_out = resid_mid"
FROM_MID = "resid_mid + mlp_out = resid_post"
IN_PARALLEL = "resid_pre + attn_out + mlp_out = resid_post"
ONE_WRITE = {tap: f"resid_pre + {tap} = resid_post" for tap in ("attn_out", "mlp_out")}

_Value = tuple[Site, Tensor]


@dataclass(slots=True)
class BlockSums:
    """What measuring one block gave.

    Attributes:
        sites: of attn_out, resid_mid and mlp_out, as far as found.
        sums: what was found to hold -> largest error relative to its terms.
        refused: tap -> why it was not found.
        writes_once: whether the block adds to the residual only once.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    writes_once: bool = False


def measure_block(block: nn.Module, probe: BlockProbe, config: object) -> BlockSums:
    """Find the sites of one block.

    Args:
        block: the block.
        probe: what it did.
        config: of the model, for scales on the writes.
    """
    scales = [1.0, *numbers((config, block), WRITE_SCALES)]
    attention, mlp = (list(_written(block, probe, names, scales)) for names in (ATTENTION_NAMES, MLP_NAMES))
    found = _in_turn(block, probe, attention, mlp) or _in_parallel(probe, attention, mlp) or _one_write(probe, attention, mlp)
    return found or _nothing(probe, attention, mlp)


def _in_turn(block: nn.Module, probe: BlockProbe, attention: list[_Value], mlp: list[_Value]) -> BlockSums | None:
    states = list(_states(block, probe))
    for reader, mid in states:
        before = _best([probe.input], attention, mid)
        # a block that adds more after the MLP (Gemma-4) is followed as far as the next module that reads the residual
        for name, end in _ends(block, probe, states if before else []):
            after = _best([mid], mlp, end)
            if after is not None:
                return _turns(probe, reader, before, after, FROM_MID.replace("resid_post", name))
    return None


def _turns(
    probe: BlockProbe, reader: Site, before: tuple[float, Site] | None, after: tuple[float, Site], sum_after: str
) -> BlockSums:
    found = BlockSums({"resid_mid": reader, "mlp_out": after[1]}, {sum_after: after[0]})
    if before is None:
        found.refused["attn_out"] = f"block {probe.layer}: no one known module's output leads from resid_pre to resid_mid"
    else:
        found.sites["attn_out"] = before[1]
        found.sums[TO_MID] = before[0]
    return found


def _in_parallel(probe: BlockProbe, attention: list[_Value], mlp: list[_Value]) -> BlockSums | None:
    found: tuple[float, Site, Site] | None = None
    for site, value in attention:
        other = _best([probe.input, value], mlp, probe.output)
        if other is not None and (found is None or other[0] < found[0]):
            found = (other[0], site, other[1])
    if found is None:
        return None
    reason = "no part of the block reads the residual between attention and MLP (they run in parallel), so there is none"
    return BlockSums(
        {"attn_out": found[1], "mlp_out": found[2]},
        {IN_PARALLEL: found[0]},
        {"resid_mid": reason},
    )


def _one_write(probe: BlockProbe, attention: list[_Value], mlp: list[_Value]) -> BlockSums | None:
    for tap, other, values in (("attn_out", "mlp_out", attention), ("mlp_out", "attn_out", mlp)):
        found = _best([probe.input], values, probe.output)
        if found is not None:
            reason = f"block {probe.layer} adds to the residual only once ({found[1]}), which is {tap}"
            return BlockSums({tap: found[1]}, {ONE_WRITE[tap]: found[0]}, {other: reason, "resid_mid": reason}, True)
    return None


def _nothing(probe: BlockProbe, attention: list[_Value], mlp: list[_Value]) -> BlockSums:
    gaps = [gap([probe.input, first, second], probe.output) for _, first in attention for _, second in mlp]
    closest = f"the closest sum is off by {min(gaps):.1e}" if gaps else "no known attention and MLP modules"
    reason = f"block {probe.layer}: what attention and MLP add to the residual was not found ({closest})"
    return BlockSums(refused=dict.fromkeys(("attn_out", "resid_mid", "mlp_out"), reason))


def _written(block: nn.Module, probe: BlockProbe, names: tuple[str, ...], scales: list[float]) -> Iterator[_Value]:
    for name, module in submodules(block, names):
        value = probe.outputs.get(name)
        if value is not None and value.shape == probe.output.shape:
            for scale in scales:
                yield Site(module, name, scale=scale), value if scale == 1.0 else value * scale


def _states(block: nn.Module, probe: BlockProbe) -> Iterator[_Value]:
    """What the block's parts read, other than the residual as it came in; the residual after attention is among it."""
    for name, value in probe.inputs.items():
        if value.shape == probe.input.shape and not torch.equal(value, probe.input):
            yield Site(block.get_submodule(name), name, reads_input=True), value


def _ends(block: nn.Module, probe: BlockProbe, states: list[_Value]) -> Iterator[tuple[str, Tensor]]:
    """What the residual may be right after the MLP's write."""
    yield "resid_post", probe.output
    for name in BLOCK_SCALES:
        for scale in numbers((block,), (name,)):
            yield f"resid_post / {name}", probe.output / scale
    for site, value in states:
        yield str(site), value


def _best(known: list[Tensor], values: list[_Value], total: Tensor) -> tuple[float, Site] | None:
    """The value that completes the known terms to the total, with the error of that sum."""
    best: tuple[float, Site] | None = None
    for site, value in values:
        terms = [*known, value]
        error = gap(terms, total)
        if error <= tolerance(*terms, total) and (best is None or error < best[0]) and _each_counts(terms, total):
            best = (error, site)
    return best


def gap(terms: list[Tensor], total: Tensor) -> float:
    """Largest error of a sum, entry by entry, relative to its terms; one huge entry does not hide errors in the others."""
    error, size = _error(terms, total)
    return float((error.abs() / size).max())


def _each_counts(terms: list[Tensor], total: Tensor) -> bool:
    """Whether each term but the first stands in the sum with a factor of 1, by least squares over all entries."""
    error, size = _error(terms, total)
    for term in terms[1:]:
        weighted = term.double() / size
        # error = sum - total, so what is left for this term alone is its factor's distance from 1
        off = torch.linalg.vecdot((error / size).flatten(), weighted.flatten()) / weighted.square().sum()
        if not abs(float(off)) <= _FACTOR_TOLERANCE:
            return False
    return True


def _error(terms: list[Tensor], total: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.stack([term.double() for term in terms])
    return wide.sum(0) - total.double(), wide.abs().sum(0).clamp(min=1e-30)
