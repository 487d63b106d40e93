"""Lenses that are an affine map for each place: x -> A x + b, or x + A x + b."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raylens.workers.lenses.interface import Place


@dataclass(frozen=True, slots=True)
class Affine:
    """One map.

    Attributes:
        matrix: [D, D] float32; a hidden state is a column on its right.
        bias: [D] float32, or None.
        residual: whether the hidden state is added to the result.
    """

    matrix: Tensor
    bias: Tensor | None = None
    residual: bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, D] float32 of [N, D] of any type, on their device."""
        wide = rows.float()
        mapped = F.linear(wide, self.matrix, self.bias)
        return wide + mapped if self.residual else mapped

    def to(self, device: torch.device) -> "Affine":
        """The same on a device."""
        return Affine(self.matrix.to(device), None if self.bias is None else self.bias.to(device), self.residual)


class AffineLens:
    """A map for each place that has one; other places, such as the last block's output, are read as they are.

    Args:
        maps: place -> map, on the CPU.
    """

    identity = False

    def __init__(self, maps: dict[Place, Affine]) -> None:
        self._maps = maps

    def __call__(self, tap: str, layer: int, rows: Tensor) -> Tensor:
        """See HiddenLens."""
        place = (tap, layer)
        if place not in self._maps:
            return rows.float()  # as the mapped ones are: rows of several places are read out together
        if self._maps[place].matrix.device != rows.device:  # a place is always on the same device, so it moves once
            self._maps[place] = self._maps[place].to(rows.device)
        return self._maps[place](rows)
