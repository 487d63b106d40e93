"""float32 rows as two terms of a short type each, for products with a weight of that type that keep float32's precision.

Matrix units take both operands in one type. x = hi + lo + rest: rounding to p bits leaves at most 2**-p of a number, and lo, a
remainder, is a bit smaller than that, so the rest is at most 2**-17 of |x| (bfloat16, p = 8; float16, p = 11, 2**-23).
"""

import torch
from torch import Tensor

#: The types that a row is split for.
SHORT = (torch.bfloat16, torch.float16)


def split_terms(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Two terms [N, D] of the dtype, and the factor [N] float32 of their products.

    Rows are first brought to a largest entry between 2**13 and 2**14 by a power of two, which is exact: float16 would lose low
    terms to underflow and large rows to overflow. Rows nowhere above 2**-100 lose precision to underflow.
    """
    exponent = torch.frexp(rows.abs().amax(dim=1)).exponent.clamp(-100, 128) - 14
    scaled = rows * _power_of_two(-exponent).unsqueeze(1)
    first = scaled.to(dtype)
    return first, (scaled - first.float()).to(dtype), _power_of_two(exponent)


def _power_of_two(exponent: Tensor) -> Tensor:
    """float32 from int32, by its bits: a GPU's pow need not be exact."""
    return ((exponent + 127) << 23).view(torch.float32)
