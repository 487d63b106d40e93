"""Final norms that are linear but for one factor per row: norm(x) = scale(x) * gain * x + bias, or with x less its mean.

Whether a norm is of this kind, and with which gain, bias and epsilon, is measured by calling it; its class is never asked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Largest error of the form, relative to the row's largest entry.
TOLERANCE = 1e-5
_LARGE, _SMALL = 1e3, 1e-3


@dataclass(frozen=True, slots=True)
class LinearNorm:
    """A norm in parts.

    Attributes:
        gain, bias: [D] float32.
        eps: added to the mean square.
        centred: whether the mean is taken off first (LayerNorm, unlike RMSNorm).
    """

    gain: Tensor
    bias: Tensor
    eps: float
    centred: bool

    def scale(self, rows: Tensor) -> Tensor:
        """[N] the factor of each of [N, D] rows."""
        return torch.rsqrt(self._moved(rows).square().mean(dim=-1) + self.eps)

    def weighted(self, rows: Tensor) -> Tensor:
        """[N, D] the linear part, without the factor: what may be summed."""
        return self._moved(rows) * self.gain

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, D] the norm itself."""
        return self.weighted(rows) * self.scale(rows).unsqueeze(-1) + self.bias

    def _moved(self, rows: Tensor) -> Tensor:
        return rows - rows.mean(dim=-1, keepdim=True) if self.centred else rows


@torch.inference_mode()
def find_linear_norm(norm: nn.Module, rows: Tensor) -> LinearNorm | None:
    """The norm in parts, if it gives what the parts give on [N, D] float32 rows; else None."""
    width = rows.shape[1]
    if width % 2:
        return None
    # of mean 0 and mean square 1, so both kinds of norm leave it as it is: large it shows the gain, small the epsilon
    signs = torch.ones(1, width, device=rows.device)
    signs[0, 1::2] = -1
    bias = norm(torch.zeros_like(signs))
    gain, damped = ((norm(size * signs) - bias) * signs for size in (_LARGE, _SMALL))
    ratio = (damped / gain)[gain != 0].double().median()
    eps = max(0.0, float(_SMALL**2 * (1 / ratio.square() - 1)))
    expected = norm(rows)
    for centred in (False, True):
        found = LinearNorm(gain[0], bias[0], eps, centred)
        error, size = (found(rows) - expected).abs().amax(dim=1), expected.abs().amax(dim=1)
        if bool((error <= TOLERANCE * size).all()):  # false also where either is not a number; a row of zeros stays one
            return found
    return None
