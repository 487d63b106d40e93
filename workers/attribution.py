"""Direct logit attribution: what each place adds to the logit of a token, with the final norm's factor held as it is at the end.

The final residual is the sum of the embedding and of every write, and norm and head are linear but for the norm's one factor a
row. So a logit is a sum of one term a write, and a constant of the biases (Elhage et al. 2021; Wang et al. 2022,
"Interpretability in the Wild"). A lens computes the factor anew at each place instead. Terms are of the logit before a soft cap.
Shapes: N rows, D width, M targets a row, U different ones.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.workers.adapter import Adapter
from raylens.workers.blocks import device_of
from raylens.workers.capture import Sites, captured
from raylens.workers.lenses.interface import Place
from raylens.workers.linear import LinearNorm, find_linear_norm
from raylens.workers.probe import probe_ids
from raylens.workers.projection import Projection
from raylens.workers.sums import FROM_MID, IN_PARALLEL, ONE_WRITE, TO_MID
from raylens.workers.tolerances import of_logits, rounding

#: Sums that were certified (sums.py) -> the taps that, with the embedding, add up to the final residual.
_WRITES = {
    frozenset({TO_MID, FROM_MID}): ("attn_out", "mlp_out"),
    frozenset({IN_PARALLEL}): ("attn_out", "mlp_out"),
    **{frozenset({total}): (tap,) for tap, total in ONE_WRITE.items()},
}
#: Largest difference between the sum of the terms and the model's logit in float32, at logits of ordinary size.
_ALLOWED = 2e-4
#: Numbers of targets' rows that are gathered at once.
_GATHERED = 1 << 22
#: Tokens whose logits are tried at load.
_TRIED = 64


@dataclass(frozen=True, slots=True)
class Attribution:
    """Of one model.

    Attributes:
        projection: its read-out.
        head: the output embedding.
        norm: the final norm in parts.
        writes: sites of all that adds up to the final residual.
        last: place of the final residual.
        sites: of every place that the sum needs: the writes and the last.
        certificate: what was measured: the largest error of a sum of terms, and the error allowed.
    """

    projection: Projection
    head: nn.Linear
    norm: LinearNorm
    writes: Sites
    last: Place
    sites: Sites
    certificate: dict[str, Any]

    def of(self, targets: Tensor) -> "Terms":
        """The terms of N rows' targets, [N, M] token ids, to be handed the rows of places."""
        return Terms(self, targets)


@dataclass(frozen=True, slots=True)
class PlaceTerms:
    """Of one place.

    Attributes:
        values: [N, M] terms of the targets' logits.
        error: [N] by how much, at most, the writes so far are short of a residual; at the end, of the model's own logit. NaN for
            taps that are no whole residual.
    """

    values: NDArray[np.float32]
    error: NDArray[np.float32]


class Terms:
    """Takes the rows of places, in the order in which the model computes them, and makes them terms of the targets' logits."""

    def __init__(self, attribution: Attribution, targets: Tensor) -> None:
        self._of = attribution
        head = attribution.head
        self._device = device_of(head, torch.device("cpu"))
        ids, self._place = torch.unique(targets.to(self._device), return_inverse=True)
        with align_module_device(head):
            self._directions = head.weight[ids].float()
            bias = torch.zeros(len(ids), device=self._device) if head.bias is None else head.bias[ids].float()
        self._bias = bias
        self._found: dict[Place, Tensor] = {}
        self._sum = torch.zeros(targets.shape, device=self._device)
        self._gaps: dict[Place, Tensor] = {}
        self._final: Tensor | None = None

    @torch.inference_mode()
    def take(self, tap: str, layer: int, rows: Tensor) -> None:
        """Take [N, D] rows of a tap."""
        place, norm = (tap, layer), self._of.norm
        rows = rows.to(norm.gain.device).float()
        found = self._of_targets(norm.weighted(rows))
        if place in self._of.writes:
            self._sum = self._sum + found
        if tap in ("resid_mid", "resid_post"):
            self._gaps[place] = found - self._sum
        if place == self._of.last:
            self._final = rows
        self._found[place] = found

    def finish(self) -> dict[Place, PlaceTerms]:
        """Those of every place that was taken, once the final residual is among them."""
        assert self._final is not None
        projection, norm = self._of.projection, self._of.norm
        step, scale = projection.step, norm.scale(self._final).to(self._device).unsqueeze(1)
        own = step(self._of_targets(projection.norm(self._final)) + self._bias[self._place])
        whole = step(self._sum * scale + self._of_targets(norm.bias.expand(len(own), -1)) + self._bias[self._place])
        factor = scale * step.factor
        gaps = {place: gap * factor for place, gap in self._gaps.items()} | {self._of.last: whole - own}
        none = torch.full_like(own, torch.nan)
        return {
            place: PlaceTerms((found * factor).cpu().numpy(), gaps.get(place, none).abs().amax(dim=1).cpu().numpy())
            for place, found in self._found.items()
        }

    def _of_targets(self, normed: Tensor) -> Tensor:
        """[N, M] products of [N, D] rows with their targets' rows of the head, of which some are in memory at a time."""
        size = max(1, _GATHERED // max(1, self._place.shape[1] * normed.shape[1]))
        parts = zip(torch.split(normed.to(self._device), size), torch.split(self._place, size), strict=True)
        return torch.cat([torch.einsum("nd,nmd->nm", rows, self._directions[place]) for rows, place in parts])


@torch.inference_mode()
def find_attribution(model: Any, adapter: Adapter) -> Attribution:
    """What attribution needs, tried on a probe prompt against the model's own logits.

    Raises:
        ModelError: writes, norm or head are not such that a logit is a sum of terms; with the reason.
    """
    taps = _WRITES.get(frozenset(adapter.sums))
    if taps is None or not all(tap in block for block in adapter.sites for tap in taps):
        raise _refused(_why(adapter))
    projection = adapter.projection
    if projection.unembedding is None:
        raise _refused(f"the head is no plain linear layer but {type(projection.head).__name__}")
    head = projection.unembedding.head
    writes = {("resid_pre", 0): adapter.sites[0]["resid_pre"]}
    writes |= {(tap, layer): block[tap] for layer, block in enumerate(adapter.sites) for tap in taps}
    last: Place = ("resid_post", len(adapter.sites) - 1)
    sites = {**writes, last: adapter.sites[-1]["resid_post"]}
    rows = captured(adapter.trunk, probe_ids(model), sites)
    device = device_of(projection.norm, rows[last].device)
    wide = torch.cat([found.to(device).float() for found in rows.values()])
    norm = find_linear_norm(projection.norm, wide)
    if norm is None:
        raise _refused("the final norm is not linear but for one factor a row")
    unproven = Attribution(projection, head, norm, writes, last, sites, {})
    return replace(unproven, certificate=_tried(unproven, rows, rounding(model)))


def _tried(attribution: Attribution, rows: dict[Place, Tensor], eps: float) -> dict[str, Any]:
    last = rows[attribution.last]
    terms = attribution.of(torch.linspace(0, len(attribution.head.weight) - 1, _TRIED).long().expand(len(last), -1))
    for (tap, layer), found in rows.items():
        terms.take(tap, layer, found)
    error = float(terms.finish()[attribution.last].error.max())
    size = float(attribution.projection.logits(last).abs().max())
    # in a short type the residual is rounded at each write, and the errors of as many roundings add up like a random walk's
    short = eps > torch.finfo(torch.float32).eps
    allowed = eps * size * len(attribution.writes) ** 0.5 if short else of_logits(_ALLOWED, size)
    if not error <= allowed:
        raise _refused(f"the terms sum to a logit that is off by {error:.1e}, allowed {allowed:.1e}")
    return {"writes": len(attribution.writes), "error": error, "allowed": allowed}


def _why(adapter: Adapter) -> str:
    if reason := adapter.refused.get("attn_out") or adapter.refused.get("mlp_out"):
        return reason
    return f"the writes do not simply add up: {'; '.join(adapter.sums) or 'no sum was found'}"


def _refused(reason: str) -> ModelError:
    return ModelError(f"--stats attribution: the logit cannot be taken apart: {reason}; leave attributions out for this model")
