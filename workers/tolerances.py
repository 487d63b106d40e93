"""How far numbers may be apart: what the types a model computes in, and the size of its logits, allow."""

import torch
from torch import Tensor, nn

#: Logits of a real model seldom exceed this; float32 rounds larger ones more coarsely.
_ORDINARY = 25.0


def rounding(model: nn.Module) -> float:
    """The relative spacing of numbers in the shortest type the model computes in, whatever it casts its results to (Mamba)."""
    types = {parameter.dtype for parameter in model.parameters()} & {torch.float32, torch.bfloat16, torch.float16}
    return max((torch.finfo(dtype).eps for dtype in types), default=torch.finfo(torch.float32).eps)


def tolerance(*tensors: Tensor) -> float:
    """Error allowed to a sum of them, relative to its terms: 1e-5 in float32, two roundings of the shortest type."""
    return max(1e-5, *(2 * torch.finfo(tensor.dtype).eps for tensor in tensors))


def of_logits(allowed: float, largest: float) -> float:
    """The error allowed to logits, given that at ordinary ones and the largest there is."""
    return allowed * max(1.0, largest / _ORDINARY)
