"""Writing a fitted lens: the files that ``--lens`` reads, and others that read tuned lenses. Where it came from is beside it.

Both hold everything of a lens in a folder: a tuned lens ``config.json`` and ``params.pt`` as TunedLens.save of tuned-lens 0.2
writes them, a linear lens ``lens.safetensors``.
"""

from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from raylens.workers.lenses.interface import Place

#: W and b of x + W x + b, by place.
Maps = dict[Place, tuple[NDArray[np.float32], NDArray[np.float32]]]


def save_tuned(folder: Path, maps: Maps, model: str, revision: str | None) -> None:
    """Write config.json and params.pt; translator i is of the input of block i."""
    state = {}
    for (tap, layer), (weight, bias) in sorted(maps.items()):
        translator = 0 if tap == "resid_pre" else layer + 1
        state[f"{translator}.weight"], state[f"{translator}.bias"] = torch.tensor(weight), torch.tensor(bias)
    torch.save(state, folder / "params.pt")
    config = {
        "base_model_name_or_path": model,
        "d_model": len(next(iter(maps.values()))[1]),
        "num_hidden_layers": len(maps),
        "bias": True,
        "base_model_revision": revision,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))


def save_linear(folder: Path, maps: Maps) -> None:
    """Write lens.safetensors: A = I + W, by the block whose output it reads."""
    tensors = {}
    for (_, layer), (weight, bias) in maps.items():
        tensors[f"A.{layer}"] = torch.eye(len(bias)) + torch.tensor(weight)
        tensors[f"b.{layer}"] = torch.tensor(bias)
    save_file(tensors, folder / "lens.safetensors")


def lens_option(kind: str, folder: Path) -> str:
    """What ``--lens`` takes for the lens in a folder."""
    return f"tuned:{folder}" if kind == "tuned" else f"linear:{folder / 'lens.safetensors'}"
