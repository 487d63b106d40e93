"""A map while it is trained: a start, and what training adds to it, in units of the standard deviations of both sides.

Residuals have a few directions that are far larger than the others. Adam moves every weight by about as much, so in plain units
those directions would swamp the map. Shapes: N rows, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from raylens.workers.fitting.moments import Moments
from raylens.workers.lenses.affine import Affine


class Translator:
    """x -> start(x) + s_y * (V (x - m) / s_x + c).

    Args:
        start: what training begins with.
        moments: of the rows, for m, s_x and s_y.

    Attributes:
        parameters: V [D, D] and c [D], zero at first.
    """

    def __init__(self, start: Affine, moments: Moments) -> None:
        self._start = start
        self._mean, self._in, self._out = moments.mean, moments.scale, moments.final_scale
        self.parameters = [torch.zeros_like(start.matrix, requires_grad=True), torch.zeros_like(self._mean, requires_grad=True)]

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, D] of [N, D] float32."""
        return self._start(rows) + self._out * F.linear((rows - self._mean) / self._in, *self.parameters)

    @torch.no_grad()
    def merged(self) -> Affine:
        """The same as one map."""
        weight, bias = self.parameters
        added = self._out.unsqueeze(1) * weight / self._in
        start = self._start.bias
        assert start is not None
        return Affine(self._start.matrix + added, start + self._out * bias - added @ self._mean, residual=True)


def identity(width: int, device: torch.device) -> Affine:
    """The logit lens as a map."""
    return Affine(torch.zeros(width, width, device=device), torch.zeros(width, device=device), residual=True)
