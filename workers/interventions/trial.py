"""Whether an edit acts on the model as it is meant to, measured on the probe prompt instead of assumed from where it is hooked.

With random vectors added at every edited layer of a tap, the sums that hold in each block (sums.py) must hold with the edited
value in them, and what leaves a block must be what the next one, or the final norm and head, reads.
"""

from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.workers.adapter import Adapter
from raylens.workers.blocks import flat_rows
from raylens.workers.calibrate import differs
from raylens.workers.capture import Site
from raylens.workers.interventions.intervention import Intervention, Placed, place
from raylens.workers.interventions.places import Span
from raylens.workers.probe import BlockProbe, probe_blocks, probe_ids
from raylens.workers.sums import measure_block


@torch.inference_mode()
def try_edits(model: Any, adapter: Adapter, edited: dict[str, set[int]]) -> None:
    """Edit each tap once, at all of its layers.

    Args:
        model: the model.
        adapter: of it.
        edited: tap -> layers.

    Raises:
        ModelError: an edit does not do what it should; with tap, layer and what was found.
    """
    stack = nn.ModuleList([block["resid_post"].module for block in adapter.sites])
    ids = probe_ids(model)
    plain, _ = probe_blocks(model, stack, ids) if edited else ([], None)
    for tap, layers in edited.items():
        trial = Intervention([_noise(adapter, tap, layer, plain[layer]) for layer in sorted(layers)])
        with trial.during([Span(ids.shape[1], 0, ids.shape[1])], ids.shape[1]):
            probes, logits = probe_blocks(model, stack, ids)
        for layer in sorted(layers):
            problem = _problem(tap, adapter.sites[layer], probes[layer], plain[layer], model.config)
            if problem is not None:
                raise _refused(f"{tap} of layer {layer}", problem)
        for layer in range(len(stack) - 1):
            handed_on = torch.equal(probes[layer].output, probes[layer + 1].input)
            if not handed_on and not (tap == "resid_pre" and layer + 1 in layers):
                raise _refused(tap, f"block {layer + 1} does not read what the block before it gives")
        if differs(adapter.projection.logits(probes[-1].output), flat_rows(logits), model):
            raise _refused(tap, "the logits are not those of the last block's output")


def _refused(tap: str, problem: str) -> ModelError:
    return ModelError(f"--intervene: tap {tap}: cannot be edited in this model ({problem}); edit another tap")


def _noise(adapter: Adapter, tap: str, layer: int, probe: BlockProbe) -> Placed:
    """A random vector of about the residual's size."""
    generator = torch.Generator().manual_seed(layer)
    vector = torch.randn(probe.output.shape[1], generator=generator) * probe.output.float().square().mean().sqrt()

    def change(_: list[int], rows: Tensor) -> Tensor:
        return rows + vector.to(rows.device, rows.dtype)

    return place(adapter, tap, layer, "all", lambda _: change)


def _problem(tap: str, sites: dict[str, Site], probe: BlockProbe, plain: BlockProbe, config: object) -> str | None:
    if torch.equal(probe.output, plain.output):
        return "nothing after it changes"
    if tap == "resid_post":  # is what leaves the block
        return None
    if tap == "resid_mid":  # attn_out is read as it was; in the sum stands what the edit made of it
        attention = sites["attn_out"]
        leads_there = probe.inputs[sites["resid_mid"].name].double() - probe.input.double()
        probe.outputs[attention.name] = leads_there / attention.scale
    block = sites["resid_post"].module
    found, before = (measure_block(block, one, config) for one in (probe, plain))
    lost = sorted(set(before.sums) - set(found.sums))
    return f"{lost[0]} does not hold any more" if lost else None
