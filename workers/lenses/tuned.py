"""The tuned lens: an affine translator for each layer (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers
with the Tuned Lens", arXiv 2303.08112), as AlignmentResearch's package tuned-lens saves it.

Its translator i is of the *input* of block i, which is the output of block i - 1: x + W_i x + b_i. The last block's output has
none and is read by the logit lens.
"""

from pathlib import Path

import msgspec

from raylens.storage.durable import read_file
from raylens.workers.lenses.affine import Affine, AffineLens
from raylens.workers.lenses.interface import Place, Shape
from raylens.workers.lenses.source import bad_file
from raylens.workers.lenses.tensors import open_tensors

#: Bytes of a config.json beyond which it is none of tuned-lens's.
_MOST_CONFIG = 1 << 20
_REMEDY = "give the folder that tuned-lens saved for this model"


class _Config(msgspec.Struct):
    """What is used of TunedLensConfig."""

    d_model: int
    num_hidden_layers: int
    bias: bool = True
    lens_type: str = "linear_tuned_lens"


def read(folder: Path, shape: Shape, places: frozenset[Place]) -> AffineLens:
    """The lens in a folder with ``config.json`` and ``params.pt``.

    Args:
        folder: where tuned-lens saved it.
        shape: of the model.
        places: to be read; only their translators are kept.

    Raises:
        ModelError: the files are not what tuned-lens saves, or not of a model of this shape.
    """
    config = _config(folder / "config.json", shape)
    maps: dict[Place, Affine] = {}
    with open_tensors(folder / "params.pt", shape) as tensors:
        for translator in range(shape.layers):
            place = ("resid_post", translator - 1) if translator else ("resid_pre", 0)
            for name, wanted in ((f"{translator}.weight", [shape.width] * 2), (f"{translator}.bias", [shape.width])):
                if config.bias or name.endswith("weight"):
                    tensors.check(name, wanted)
            if place in places:
                bias = tensors.get(f"{translator}.bias") if config.bias else None
                maps[place] = Affine(tensors.get(f"{translator}.weight"), bias, residual=True)
    return AffineLens(maps)


def _config(path: Path, shape: Shape) -> _Config:
    try:
        if path.stat().st_size > _MOST_CONFIG:
            raise bad_file(path, f"larger than {_MOST_CONFIG:,} bytes", _REMEDY)
        config = msgspec.json.decode(read_file(path), type=_Config)
    except OSError as error:
        raise bad_file(path, str(error.strerror), _REMEDY) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_file(path, f"not the configuration of a tuned lens ({error})", _REMEDY) from error
    if config.lens_type != "linear_tuned_lens":
        raise bad_file(path, f"lens_type is {config.lens_type[:100]!r}", "only linear_tuned_lens is read")
    if (config.num_hidden_layers, config.d_model) != (shape.layers, shape.width):
        raise bad_file(
            path,
            f"of a model with {config.num_hidden_layers} layers of width {config.d_model}, "
            f"and this one has {shape.layers} of width {shape.width}",
            "give the lens of this model",
        )
    return config
