"""What turns the last block's output into the model's own logits: tried by name, told by value."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.workers.after_head import candidate_steps, identity
from raylens.workers.blocks import final_norms, output_embedding
from raylens.workers.projection import Projection
from raylens.workers.tolerances import of_logits, rounding

#: Largest difference from the model's own logits allowed in float32, at logits of ordinary size.
LOGIT_TOLERANCE = 1e-4
#: How far from 1 the factor between the lens's and the model's logits may be, by least squares; it shows in a short type
#: what the rounding of single logits would hide.
_FACTOR_TOLERANCE = 3e-3


@dataclass(frozen=True, slots=True)
class _Distance:
    """How far the lens is from the model's logits.

    Attributes:
        error: the largest difference of a logit, and
        allowed: how large it may be.
        spread: root of the mean square difference, relative to that of the logits, and how large it may be.
        factor: distance from 1 of the factor between the two, each less the mean of its row.
    """

    error: float
    allowed: float
    spread: float
    spread_allowed: float
    factor: float

    @property
    def off(self) -> float:
        """The error; where it is not a number, further off than all others."""
        return math.inf if math.isnan(self.error) else self.error

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed and self.spread <= self.spread_allowed and self.factor <= _FACTOR_TOLERANCE


def differs(lens: Tensor, logits: Tensor, model: nn.Module) -> bool:
    """Whether [T, V] logits of the lens are not the model's own."""
    return not _distance(lens, logits, rounding(model)).holds


def find_projection(model: Any, owner: nn.Module, last: Tensor, logits: Tensor) -> tuple[Projection, dict[str, Any]]:
    """The final norm and the step after the head that give the model's own logits, and what was measured.

    Args:
        model: the model.
        owner: the module that holds the block stack.
        last: [T, D] output of the last block.
        logits: [T, V] the model's own logits for it.

    Raises:
        ModelError: none of them does.
    """
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise ModelError(
            f"{type(model).__name__}: its own logits for a probe prompt are not finite: a weight is damaged, or one overflows "
            "(--dtype float32 has room for larger ones)"
        )
    head = output_embedding(model)
    wanted, width = getattr(head, "in_features", last.shape[1]), last.shape[1]
    if wanted != width:
        raise ModelError(
            f"{type(model).__name__}: the output embedding reads width {wanted}, the blocks give width {width}; not supported"
        )
    eps = rounding(model)
    best: tuple[_Distance, str, str, Projection] | None = None
    for norm_name, norm in final_norms(owner):
        before_step = Projection(norm, head, identity).logits(last)
        if before_step.shape[1] != logits.shape[1]:
            sizes = f"the output embedding has {before_step.shape[1]} rows, the model gives {logits.shape[1]} logits"
            raise ModelError(f"{type(model).__name__}: {sizes}; not supported")
        for step_name, step in candidate_steps(model.config):
            distance = _distance(step(before_step), logits, eps)
            if best is None or distance.off < best[0].off:
                best = (distance, norm_name, step_name, Projection(norm, head, step))
    if best is None or not best[0].holds:
        found = "no final norm was found" if best is None else _shortfall(best[0])
        raise ModelError(
            f"{type(model).__name__}: the lens of the last block does not give the model's logits ({found}); not supported"
        )
    distance, norm_name, step_name, projection = best
    return projection, {"norm": norm_name, "after_head": step_name, "error": distance.error, "allowed": distance.allowed}


def _shortfall(distance: _Distance) -> str:
    return (
        f"closest is off by {distance.error:.1e}, allowed {distance.allowed:.1e}; "
        f"by a factor of 1 ± {distance.factor:.1e}, allowed {_FACTOR_TOLERANCE:.0e}"
    )


def _distance(lens: Tensor, logits: Tensor, eps: float) -> _Distance:
    target = logits.to(lens.device).double()
    possible = ~(lens.isneginf() & target.isneginf()).all(dim=0)  # tokens that a bias of minus infinity rules out agree
    lens, target = lens[:, possible].double(), target[:, possible]
    difference = lens - target
    size = max(1.0, float(target.abs().max()))
    short = eps > torch.finfo(torch.float32).eps
    # a model in a short type rounds its own hidden states and logits; the float32 lens may differ by that and no more
    allowed = 4 * eps * size if short else of_logits(LOGIT_TOLERANCE, size)
    spread = float(difference.square().mean().sqrt() / target.square().mean().sqrt().clamp(min=1e-30))
    centred, change = (value - value.mean(dim=1, keepdim=True) for value in (target, difference))
    factor = float((centred * change).sum() / centred.square().sum().clamp(min=1e-30))
    return _Distance(float(difference.abs().max()), allowed, spread, max(1e-4, eps), abs(factor))
