"""How far numbers may be apart: what the types a model computes in, and the size of its logits, allow."""

import torch
from torch import Tensor, nn

#: Roundings by which a row may differ between two ways through a model, in float32 and in a shorter type (docs/decisions/0022).
_ROUNDINGS, _SHORT_ROUNDINGS = 1024, 8
#: How far off a row of a shorter type may be, relative to its norm, where rounding made a mixture of experts choose others.
_OTHER_EXPERTS = 0.3
#: Logits of a real model seldom exceed this; float32 rounds larger ones more coarsely.
_ORDINARY = 25.0


def rounding(model: nn.Module) -> float:
    """The relative spacing of numbers in the shortest type the model computes in, whatever it casts its results to (Mamba)."""
    types = {parameter.dtype for parameter in model.parameters()} & {torch.float32, torch.bfloat16, torch.float16}
    return max((torch.finfo(dtype).eps for dtype in types), default=torch.finfo(torch.float32).eps)


def of_rows(spacing: float) -> float:
    """How far apart rows may be, as ``apart`` has it, in numbers of that relative spacing."""
    return (_ROUNDINGS if _is_long(spacing) else _SHORT_ROUNDINGS) * spacing


def apart(found: Tensor, wanted: Tensor, spacing: float) -> Tensor:
    """How far a prompt's rows [N, D] are from what they should be, each relative to its own norm: a first token, whose norm
    may be a thousand times that of others, hides nothing in those.

    The farthest row; of a shorter type the median one, unless a row is further off than another choice of experts explains.
    What is wrong with padding or a cache is wrong in most rows, what rounding tips over in few.
    """
    errors = (found.double() - wanted.double()).norm(dim=-1) / wanted.double().norm(dim=-1).clamp(min=1e-30)
    worst: Tensor = errors.max()
    return worst if _is_long(spacing) or float(worst) > _OTHER_EXPERTS else errors.median()


def _is_long(spacing: float) -> bool:
    return spacing <= torch.finfo(torch.float32).eps


def tolerance(*tensors: Tensor) -> float:
    """Error allowed to a sum of them, relative to its terms: 1e-5 in float32, two roundings of the shortest type."""
    return max(1e-5, *(2 * torch.finfo(tensor.dtype).eps for tensor in tensors))


def of_logits(allowed: float, largest: float) -> float:
    """The error allowed to logits, given that at ordinary ones and the largest there is."""
    return allowed * max(1.0, largest / _ORDINARY)
