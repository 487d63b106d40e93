"""The Jacobian lens: J_l x, where J_l is the mean derivative of the last block's output by the output of block l (Gurnee et al.
2026, "Verbalizable Representations Form a Global Workspace in Language Models", arXiv 2607.15495).

Read from the files of torch.save that their package jlens writes, and vllm-lens and Neuronpedia's interp-engine read:
``{"J": {layer: [D, D]}}``, keyed by block *output*, or ``{"parameters": {"jacobians": {layer: [D, D]}}}``; or a .safetensors
file with the names ``J.0``, ``J.1``, ... The last block's output needs no matrix.
"""

from pathlib import Path

from raylens.workers.lenses.affine import AffineLens
from raylens.workers.lenses.by_layer import read_maps
from raylens.workers.lenses.interface import Place, Shape


def read(path: Path, shape: Shape, places: frozenset[Place]) -> AffineLens:
    """The lens in a file.

    Args:
        path: of the file.
        shape: of the model.
        places: to be read; only their matrices are kept.

    Raises:
        ModelError: the file cannot be read, lacks a layer, or is not of a model of this shape.
    """
    return AffineLens(read_maps(path, shape, places, matrices=("J", "parameters.jacobians")))
