"""Files of lenses as other packages write them, with random maps."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def translators(layers: int, width: int, scale: float = 0.7) -> nn.ModuleList:
    """A tuned lens's layer_translators: random, or with scale 0 those that change nothing, as training begins with."""
    generator = torch.Generator().manual_seed(5)
    plain = nn.Linear(width, width)
    found = nn.ModuleList([deepcopy(plain) for _ in range(layers)])
    with torch.no_grad():
        for value in found.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5 ** (value.dim() - 1))
    return found


def save_tuned(folder: Path, translators: nn.ModuleList, **config: Any) -> Path:
    """What TunedLens.save of tuned-lens 0.2 does."""
    folder.mkdir(exist_ok=True, parents=True)
    first = translators[0]
    assert isinstance(first, nn.Linear)
    torch.save(translators.state_dict(), folder / "params.pt")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "base_model_name_or_path": "made-up",
                "d_model": first.in_features,
                "num_hidden_layers": len(translators),
                "bias": first.bias is not None,
                "base_model_revision": None,
                "unembed_hash": "0",
                "lens_type": "linear_tuned_lens",
                **config,
            }
        )
    )
    return folder


def save_packed(path: Path, name: str, shape: list[int]) -> None:
    """A .safetensors file of one tensor with two numbers in a byte, as weights of some GPUs are."""
    size = math.prod(shape) // 2
    header = json.dumps({name: {"dtype": "F4", "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def matrices(layers: int, width: int) -> dict[int, Tensor]:
    """A random matrix for each layer but the last."""
    generator = torch.Generator().manual_seed(6)
    return {layer: torch.randn(width, width, generator=generator) / width**0.5 for layer in range(layers - 1)}
