"""Least squares from a layer to the last block's output, from sums that take as much memory however many rows there are.

The map is x + W x + b, where W is the ridge regression of what is still missing, y - x, so that the penalty draws the map to the
logit lens and not to zero (docs/decisions/0012). Shapes: N rows, D width.
"""

import torch
from torch import Tensor

from raylens.workers.lenses.affine import Affine

#: A direction that varies less than this share of the mean is taken to vary so much, for scales to divide by.
_LEAST = 1e-3


class Moments:
    """Sums over rows, float64.

    Args:
        width: D.
        device: of the rows.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        zeros = torch.zeros(width, width + 3, dtype=torch.float64, device=device)
        self._x, self._y, self._y_squares = zeros[:, width], zeros[:, width + 1], zeros[:, width + 2]
        self._gram, self._cross = zeros[:, :width], torch.zeros_like(zeros[:, :width])
        self._count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in [N, D] float32 of the layer and of the last block's output."""
        self._count += len(x)
        self._x += x.sum(0, dtype=torch.float64)
        self._y += y.sum(0, dtype=torch.float64)
        self._y_squares += y.double().square().sum(0)
        self._gram += x.T @ x  # products in float32, sums of batches in float64
        self._cross += x.T @ y

    @property
    def finite(self) -> bool:
        """Whether all rows were, and their products."""
        return all(bool(sums.isfinite().all()) for sums in (self._gram, self._cross, self._y_squares))

    @property
    def mean(self) -> Tensor:
        """[D] float32 of the layer's rows."""
        return (self._x / self._count).float()

    @property
    def scale(self) -> Tensor:
        """[D] float32: the standard deviation of the layer's rows."""
        return _root(self._gram.diagonal() / self._count - (self._x / self._count).square())

    @property
    def final_scale(self) -> Tensor:
        """[D] float32: the standard deviation of the last block's output."""
        return _root(self._y_squares / self._count - (self._y / self._count).square())

    def ridge(self, penalty: float) -> Affine:
        """The map of least squares.

        Args:
            penalty: on each column of W, relative to the variance of what it multiplies; the bias has none.
        """
        x, y = self._x / self._count, self._y / self._count
        gram = self._gram / self._count - torch.outer(x, x)
        cross = self._cross / self._count - torch.outer(x, y)
        variance = gram.diagonal()
        damping = penalty * variance.clamp(min=float(_LEAST * variance.mean()) + 1e-30)
        weight = torch.linalg.solve(gram + damping.diag(), cross - gram).T
        return Affine(weight.float().contiguous(), (y - x - weight @ x).float(), residual=True)


def _root(variance: Tensor) -> Tensor:
    variance = variance.clamp(min=0)
    return variance.clamp(min=float(_LEAST * variance.mean()) + 1e-30).sqrt().float()
