"""What to hook in a model, measured on a probe prompt instead of assumed from its name.

For each block, the modules whose outputs make resid_pre + attn_out + mlp_out = resid_post are found by trying them; the
final norm and the step after the head are those that turn the last block's output into the model's own logits, by value.
What cannot be measured right is refused with the reason, never lensed wrongly.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.storage.taps import DEFAULT_TAPS, TAPS
from raylens.workers.blocks import (
    ATTENTION_NAMES,
    MLP_NAMES,
    WRITE_SCALES,
    final_norms,
    find_stack,
    flat_rows,
    output_embedding,
    submodules,
    tolerance,
)
from raylens.workers.probe import BlockProbe, probe_blocks, probe_ids
from raylens.workers.projection import Projection
from raylens.workers.steps import candidate_steps

#: Largest difference from the model's own logits allowed in float32, at logits of ordinary size.
LOGIT_TOLERANCE = 1e-4
#: A part of a sum counts as found only if leaving it out makes the error this many times larger.
_EVIDENCE = 10.0


@dataclass(frozen=True, slots=True)
class Site:
    """One hook: a module of a block, whether its input or output is read, and the factor on it."""

    module: nn.Module
    name: str
    reads_input: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A model ready to be lensed.

    Attributes:
        sites: for each block, tap -> Site; a refused tap is absent from every block.
        projection: from hidden rows to logits.
        certificate: what was measured: per tap the hooked modules and largest relative error, the lens's error
            against the model's logits, and the refused taps with reasons.
    """

    sites: list[dict[str, Site]]
    projection: Projection
    certificate: dict[str, Any] = field(default_factory=dict)

    def taps(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """The taps of a run: those asked for, or the default ones this model has.

        Raises:
            ModelError: a tap asked for was refused; with the reason.
        """
        refused: dict[str, str] = self.certificate["refused"]
        for tap in asked or ():
            if tap in refused:
                raise ModelError(f"--taps {tap}: {refused[tap]}; choose from {', '.join(t for t in TAPS if t not in refused)}")
        return asked if asked is not None else tuple(tap for tap in DEFAULT_TAPS if tap not in refused)


@torch.inference_mode()
def adapt(model: nn.Module) -> Adapter:
    """Find and measure what the lens needs.

    Raises:
        ModelError: the lens of the last block cannot be made equal to the model's logits.
    """
    owner, stack = find_stack(model)
    scales = [float(value) for name in WRITE_SCALES if isinstance(value := getattr(model.config, name, None), int | float)]
    probes, logits = probe_blocks(model, stack, probe_ids(model))
    projection, lens = _find_projection(model, owner, flat_rows(probes[-1].output), flat_rows(logits))
    found = [_measure_block(block, probe, [1.0, *scales]) for block, probe in zip(stack, probes, strict=True)]
    sites = [{**block.sites, "resid_post": Site(module, "")} for block, module in zip(found, stack, strict=True)]
    sites[0]["resid_pre"] = Site(stack[0], "", reads_input=True)
    refused = {tap: reason for block in reversed(found) for tap, reason in block.refused.items()}
    for block_sites in sites:
        for tap in refused:
            block_sites.pop(tap, None)
    certificate = {
        "architecture": type(model).__name__,
        "dtype": str(probes[-1].output.dtype).removeprefix("torch."),
        "layers": len(stack),
        "lens": lens,
        "taps": {tap: _summary(tap, sites, found) for tap in TAPS if any(tap in block_sites for block_sites in sites)},
        "refused": refused,
    }
    return Adapter(sites, projection, certificate)


def _summary(tap: str, sites: list[dict[str, Site]], found: "list[_Block]") -> dict[str, Any]:
    hooked = sorted({_describe(block[tap]) for block in sites if tap in block})
    summary: dict[str, Any] = {"hooked": hooked}
    if tap in {"attn_out", "resid_mid", "mlp_out"}:
        summary["error"] = max(block.error for block in found)
    return summary


def _describe(site: Site) -> str:
    side = "input of" if site.reads_input else "output of"
    scale = "" if site.scale == 1.0 else f" x {site.scale:g}"
    return f"{side} {site.name or 'the block'}{scale}"


@dataclass(slots=True)
class _Block:
    """What measuring one block gave: sites of attn_out, resid_mid and mlp_out, the sum's relative error, refusals."""

    sites: dict[str, Site] = field(default_factory=dict)
    error: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)


def _measure_block(block: nn.Module, probe: BlockProbe, scales: list[float]) -> _Block:
    pre, post = probe.input, probe.output
    size = float(post.abs().max())
    best: tuple[float, Site, Site, Tensor, Tensor] | None = None
    for attention in _written(block, probe, ATTENTION_NAMES, scales):
        for mlp in _written(block, probe, MLP_NAMES, scales):
            error = float((pre + attention[1] + mlp[1] - post).abs().max()) / size
            if best is None or error < best[0]:
                best = (error, attention[0], mlp[0], attention[1], mlp[1])
    if best is None or best[0] > tolerance(post.dtype) or not _each_counts(pre, post, best[3], best[4]):
        error_text = "no known attention and MLP modules" if best is None else f"closest sum is off by {best[0]:.1e}"
        reason = f"block {probe.layer}: what attention and MLP add to the residual was not found ({error_text})"
        return _Block(refused=dict.fromkeys(("attn_out", "resid_mid", "mlp_out"), reason))
    error, attention_site, mlp_site, attention_out, _ = best
    found = _Block({"attn_out": attention_site, "mlp_out": mlp_site}, error)
    reader = _reader_of(pre, attention_out, probe)
    if reader is None:
        found.refused["resid_mid"] = "attention and MLP read the same residual (parallel block), so there is none between them"
    else:
        found.sites["resid_mid"] = Site(block.get_submodule(reader), reader, reads_input=True)
    return found


def _written(block: nn.Module, probe: BlockProbe, names: tuple[str, ...], scales: list[float]) -> list[tuple[Site, Tensor]]:
    written = []
    for name, module in submodules(block, names):
        if name in probe.outputs and probe.outputs[name].shape == probe.output.shape:
            written += [(Site(module, name, scale=scale), probe.outputs[name] * scale) for scale in scales]
    return written


def _each_counts(pre: Tensor, post: Tensor, attention: Tensor, mlp: Tensor) -> bool:
    error = float((pre + attention + mlp - post).float().norm())
    without = min(float((pre + part - post).float().norm()) for part in (attention, mlp))
    return without > _EVIDENCE * error


def _reader_of(pre: Tensor, attention: Tensor, probe: BlockProbe) -> str | None:
    """The module that reads the residual after attention, told from the residual before it by an order of magnitude."""
    mid = pre + attention
    for name, value in probe.inputs.items():
        if value.shape != mid.shape:
            continue
        error = float((value - mid).float().norm())
        if error * _EVIDENCE < float((value - pre).float().norm()) and error <= tolerance(pre.dtype) * float(mid.float().norm()):
            return name
    return None


def _find_projection(model: nn.Module, owner: nn.Module, last: Tensor, logits: Tensor) -> tuple[Projection, dict[str, Any]]:
    """The final norm and step that give the model's own logits, by value."""
    head = output_embedding(model)
    short = logits.dtype != torch.float32
    best: tuple[float, str, str, Projection] | None = None
    target = logits.float()
    for norm_name, norm in final_norms(owner):
        for step_name, step in candidate_steps(model.config):
            projection = Projection(norm, head, step)
            error = float((projection.logits(last).to(target.device) - target).abs().max())
            if best is None or error < best[0]:
                best = (error, norm_name, step_name, projection)
    # a model in a short type rounds its own logits; the float32 lens may differ from them by that and no more
    size = max(1.0, float(target.abs().max()))
    allowed = 8 * torch.finfo(logits.dtype).eps * size if short else LOGIT_TOLERANCE * max(1.0, size / 25)
    if best is None or not best[0] <= allowed:
        found = "no final norm found" if best is None else f"closest is off by {best[0]:.1e}, allowed {allowed:.1e}"
        raise ModelError(
            f"{type(model).__name__}: the lens of the last block does not give the model's logits ({found}); not supported"
        )
    error, norm_name, step_name, projection = best
    lens = {"norm": norm_name, "after_head": step_name, "error": error, "allowed": allowed, "path": projection.path}
    return projection, lens
