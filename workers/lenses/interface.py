"""What every lens offers, and what it is told of the model."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

#: (tap, layer) of a hidden state.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a lens's file must fit: the model's number of blocks, and the width of its residual."""

    layers: int
    width: int


class HiddenLens(Protocol):
    """Maps hidden states to what is put through the final norm and the unembedding.

    Attributes:
        identity: whether every hidden state is left as it is; only then may taps be read out as running sums.
    """

    @property
    def identity(self) -> bool: ...

    def __call__(self, tap: str, layer: int, rows: Tensor) -> Tensor:
        """[N, D] of what was fitted for the place, float32 or as they came; on the device of the rows."""
        ...
