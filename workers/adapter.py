"""What to hook in a model, measured on a probe prompt instead of assumed from its name.

For each block, the modules that write to the residual are found by trying which sums hold (sums.py); the final norm and the
step after the head are those that turn the last block's output into the model's own logits, by value (calibrate.py).
What cannot be measured right is refused with the reason, never lensed wrongly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raylens.storage.errors import ModelError
from raylens.storage.taps import DEFAULT_TAPS, TAPS
from raylens.workers.blocks import device_of, find_stack, flat_rows
from raylens.workers.calibrate import find_projection
from raylens.workers.capture import Site
from raylens.workers.certify_walk import find_walk
from raylens.workers.fused import K, try_fused
from raylens.workers.probe import probe_blocks, probe_ids
from raylens.workers.projection import Projection
from raylens.workers.sums import BlockSums, measure_block
from raylens.workers.trunk import find_trunk
from raylens.workers.walk import Walk


@dataclass(frozen=True, slots=True)
class Adapter:
    """A model ready to be lensed.

    Attributes:
        trunk: what to run for hidden states: the model without its head where that gives the same, else the model.
        sites: for each block, tap -> Site; a refused tap is absent from every block.
        projection: from hidden rows to logits.
        sums: that hold in every block (sums.py) -> largest relative error.
        refused: taps that cannot be read -> why.
        walk: reads out running sums where that is exact, else None.
        certificate: what was measured, sums and refusals among it: per tap the hooked modules, the lens's error against the
            model's logits, and that of padded batches against single prompts.
    """

    trunk: nn.Module
    sites: list[dict[str, Site]]
    projection: Projection
    sums: dict[str, float]
    refused: dict[str, str]
    walk: Walk | None
    certificate: dict[str, Any]

    def taps(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """The taps of a run: those asked for, or the default ones this model has.

        Raises:
            ModelError: a tap asked for was refused; with the reason.
        """
        for tap in asked or ():
            if tap in self.refused:
                others = ", ".join(other for other in TAPS if other not in self.refused)
                raise ModelError(f"--taps {tap}: {self.refused[tap]}; choose from {others}")
        return asked if asked is not None else tuple(tap for tap in DEFAULT_TAPS if tap not in self.refused)


@torch.inference_mode()
def adapt(model: Any, k: int = K) -> Adapter:
    """Find and measure what the lens needs.

    Args:
        k: tokens of a place that will be kept.

    Raises:
        ModelError: the lens of the last block cannot be made equal to the model's logits, or batches not to single prompts.
    """
    owner, stack = find_stack(model)
    ids = probe_ids(model)
    probes, logits = probe_blocks(model, stack, ids)
    last = probes[-1].output
    projection, lens = find_projection(model, owner, last, flat_rows(logits))
    projection.try_faster(last)
    if device_of(projection.head, torch.device("cpu")).type == "cuda":
        lens["kernel"] = try_fused(projection, last, k)
    lens["path"] = projection.path(k)
    found = [measure_block(block, probe, model.config) for block, probe in zip(stack, probes, strict=True)]
    refused = _refusals(found)
    sites = [{**block.sites, "resid_post": Site(module, "")} for block, module in zip(found, stack, strict=True)]
    sites[0]["resid_pre"] = Site(stack[0], "", reads_input=True)
    for block_sites in sites:
        for tap in refused:
            block_sites.pop(tap, None)
    sums = _largest_errors(found, refused)
    walk = find_walk(projection, probes, sites, sums) if _all_on_cpu(stack) else None
    trunk = find_trunk(model, owner, stack[-1], ids, last)
    certificate = {
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": len(stack),
        "runs": {"module": type(trunk.module).__name__, "padding_error": trunk.error, "allowed": trunk.allowed},
        "lens": lens,
        "taps": {
            tap: {"hooked": sorted({str(block[tap]) for block in sites if tap in block})}
            for tap in TAPS
            if any(tap in block for block in sites)
        },
        "sums": sums,
        "refused": refused,
    }
    return Adapter(trunk.module, sites, projection, sums, refused, walk, certificate)


def _all_on_cpu(stack: nn.ModuleList) -> bool:
    cpu = torch.device("cpu")
    return all(device_of(module, cpu) == cpu for module in stack.modules())


def _refusals(found: list[BlockSums]) -> dict[str, str]:
    """Refused taps with the reason of the first block that refused; a tap is offered only if every block has it."""
    refused = {tap: reason for block in reversed(found) for tap, reason in block.refused.items()}
    kinds = {type(site.module).__name__ for block in found if block.writes_once for site in block.sites.values()}
    if len(kinds) > 1:  # as in Nemotron-H, where attention, MLP and recurrent mixers go by one name
        reason = f"each block adds to the residual once, by parts of different kinds ({', '.join(sorted(kinds))})"
        refused |= dict.fromkeys(("attn_out", "resid_mid", "mlp_out"), reason)
    return refused


def _largest_errors(found: list[BlockSums], refused: dict[str, str]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for block in found:
        for text, error in block.sums.items():
            if refused.keys().isdisjoint(text.split()):
                largest[text] = max(error, largest.get(text, 0.0))
    return largest
