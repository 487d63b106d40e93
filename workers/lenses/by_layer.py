"""Maps of block outputs from a file that has a matrix for each layer."""

from pathlib import Path

from raylens.workers.lenses.affine import Affine
from raylens.workers.lenses.interface import Place, Shape
from raylens.workers.lenses.source import bad_file
from raylens.workers.lenses.tensors import Tensors, open_tensors


def read_maps(
    path: Path, shape: Shape, places: frozenset[Place], matrices: tuple[str, ...], biases: str | None = None
) -> dict[Place, Affine]:
    """The maps of the chosen block outputs; the last block's output is read as it is where the file has none for it.

    Args:
        path: of the file.
        shape: of the model.
        places: to be read.
        matrices: names under which the matrices may be, by layer.
        biases: name under which biases may be, by layer.

    Raises:
        ModelError: the file cannot be read, lacks a layer, or does not fit the model.
    """
    with open_tensors(path, shape) as tensors:
        group, layers = _layers(path, tensors, matrices)
        if max(layers) >= shape.layers:
            problem = f"has a matrix for layer {max(layers)}, and the model has layers 0 to {shape.layers - 1}"
            raise bad_file(path, problem, "give the lens of this model")
        for layer in layers:  # all of them, for a lens of another model may fit at some layers
            tensors.check(f"{group}.{layer}", [shape.width] * 2)
        chosen = sorted(layer for _, layer in places)
        missing = [layer for layer in chosen if layer not in layers and layer != shape.layers - 1]
        if missing:
            listed = ",".join(map(str, [*layers, *([shape.layers - 1] if shape.layers - 1 not in layers else [])]))
            raise bad_file(path, f"has no matrix for layer {missing[0]}", f"choose layers {listed} (--layers)")
        maps = {}
        for layer in chosen:
            if layer in layers:
                bias = f"{biases}.{layer}" if biases is not None and f"{biases}.{layer}" in tensors.names else None
                if bias is not None:
                    tensors.check(bias, [shape.width])
                maps["resid_post", layer] = Affine(tensors.get(f"{group}.{layer}"), None if bias is None else tensors.get(bias))
        return maps


def _layers(path: Path, tensors: Tensors, matrices: tuple[str, ...]) -> tuple[str, list[int]]:
    """The name that the file uses, and the layers it has, ascending."""
    for group in matrices:
        found = [name.removeprefix(f"{group}.") for name in tensors.names if name.startswith(f"{group}.")]
        layers = sorted(int(layer) for layer in found if layer.isascii() and layer.isdigit() and len(layer) < 6)
        if layers:
            return group, layers
    seen = ", ".join(repr(name[:40]) for name in tensors.names[:4]) or "no tensor"
    raise bad_file(
        path, f"has no tensor named {matrices[0]}.LAYER (it has {seen})", "see docs/LENSES.md for what a lens file holds"
    )
