"""The linear shortcut: A_l x + b_l, fitted by least squares to the last block's output (Din et al. 2023, "Jump to Conclusions:
Short-Cutting Transformers With Linear Transformations", arXiv 2303.09435).

Read from a .safetensors file with the names ``A.0``, ``A.1``, ... and, if there are biases, ``b.0``, ``b.1``, ...; or from
torch.save of ``{"A": {layer: [D, D]}, "b": {layer: [D]}}``. Keyed by block *output*; the last block's needs no matrix.
"""

from pathlib import Path

from raylens.workers.lenses.affine import AffineLens
from raylens.workers.lenses.by_layer import read_maps
from raylens.workers.lenses.interface import Place, Shape


def read(path: Path, shape: Shape, places: frozenset[Place]) -> AffineLens:
    """The lens in a file; arguments and errors as of the Jacobian lens."""
    return AffineLens(read_maps(path, shape, places, matrices=("A",), biases="b"))
