"""Models spread over devices, or partly left on disk, give what they give in one place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raylens.storage.record import Prompt, Record
from raylens.workers.adapter import adapt
from raylens.workers.model import load_model
from raylens.workers.settings import DType, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.models import save, sentence

LAYERS = {"model.rotary_emb": "cpu", "model.embed_tokens": "cpu", "model.layers.0": "cpu"}
MAPS = {
    "some layers on disk": {**LAYERS, "model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "cpu", "lm_head": "cpu"},
    "norm and head on disk": {
        **LAYERS,
        "model.layers.1": "disk",
        "model.layers.2": "cpu",
        "model.norm": "disk",
        "lm_head": "disk",
    },
    "all on disk": {
        "model.rotary_emb": "cpu",
        "model.embed_tokens": "disk",
        "model.layers": "disk",
        "model.norm": "disk",
        "lm_head": "disk",
    },
}
GPT2_MAP = {
    "transformer.wte": "cpu",
    "transformer.wpe": "disk",
    "transformer.h": "disk",
    "transformer.ln_f": "disk",
    "lm_head": "disk",
}
#: Where there is a GPU, a model without a map would go there.
IN_MEMORY = "cpu" if torch.cuda.is_available() else None
PROMPTS = [Prompt(n, str(n), sentence([7 * n + place for place in range(1, 6 + n)])) for n in range(3)]
cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


def records(folder: Path, device_map: dict[str, Any] | str | None, dtype: DType = "float32") -> list[Record]:
    text = json.dumps(device_map) if isinstance(device_map, dict) else device_map
    model, lens = ModelSettings(str(folder), dtype=dtype, device_map=text), LensSettings(logprobs="float32", positions="all")
    found = list(Worker(WorkerSettings(model, lens)).run(PROMPTS))
    assert all(isinstance(outcome, Record) for outcome in found)
    return [outcome for outcome in found if isinstance(outcome, Record)]


def same(found: list[Record], expected: list[Record], atol: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.id == other.id
        for tap, lens in other.taps.items():
            assert np.mean(one.taps[tap].ids == lens.ids) >= (1.0 if atol < 1e-5 else 0.99)
            for field in ("logprobs", "logsumexp", "entropy"):
                np.testing.assert_allclose(getattr(one.taps[tap], field), getattr(lens, field), atol=atol, rtol=atol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAPS)
def test_disk_offload_gives_the_same(folder: Path, name: str, dtype: DType) -> None:
    """Whatever lies on disk, and also in bfloat16, ids and numbers are those of the model in memory."""
    same(records(folder, MAPS[name], dtype), records(folder, IN_MEMORY, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloaded_layer_norm(tmp_path: Path, dtype: DType) -> None:
    """The same for a final norm that does not take other types than its own (GPT-2's)."""
    save(tmp_path, "gpt2")
    same(records(tmp_path, GPT2_MAP, dtype), records(tmp_path, IN_MEMORY, dtype))


def test_offloaded_head_keeps_float32(folder: Path) -> None:
    """A head on disk is still multiplied in float32, not in its own short type."""
    model, _ = load_model(ModelSettings(str(folder), dtype="bfloat16", device_map=json.dumps(MAPS["all on disk"])))
    assert adapt(model).certificate["lens"]["path"].startswith("float32 product by vocabulary block")
    assert all(parameter.is_meta for parameter in model.parameters())  # and is back on disk afterwards


@pytest.mark.parametrize("device_map", ["auto", "cpu", pytest.param({"": "cuda:0"}, marks=cuda)])
def test_words_and_one_device(folder: Path, device_map: dict[str, Any] | str) -> None:
    """auto, and everything on one named device, give the same as no map."""
    same(records(folder, device_map), records(folder, None), 1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_gpu_with_layers_left_to_the_cpu(folder: Path) -> None:
    """Layers whose weights stay in the CPU's memory are computed on the GPU, and give what the CPU gives."""
    mixed = {"model.rotary_emb": 0, "model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "cpu", "model.layers.2": 0}
    found = records(folder, {**mixed, "model.norm": 0, "lm_head": "cpu"})
    same(found, records(folder, {"": "cpu"}), 1e-4)
