"""What does not fit a model is refused from its configuration and tokenizer, before any weights are loaded."""

from pathlib import Path
from typing import Any

import pytest

from raylens.storage.errors import ModelError, UsageError
from raylens.workers.interventions.edits import read_edits
from raylens.workers.preflight import inspect_model
from raylens.workers.settings import GenerationSettings, LensSettings, ModelSettings, WorkerSettings
from tests.models import VOCABULARY, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """Three layers, 64 positions, and no weights."""
    folder = save(tmp_path_factory.mktemp("model"))
    (folder / "model.safetensors").unlink()
    return ModelSettings(str(folder))


def edit_of(layer: int) -> dict[str, Any]:
    return {"edits": read_edits({"edits": [{"tap": "attn_out", "layers": layer, "zero": True}]})}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"lens": LensSettings(top_k=VOCABULARY + 1)}, f"--top-k {VOCABULARY + 1}: larger than the vocabulary of {VOCABULARY}"),
        ({"lens": LensSettings(heads="3")}, "--heads '3': the model has layers 0 to 2"),
        ({"lens": LensSettings(positions="first")}, "--positions 'first'"),
        ({"lens": LensSettings(track=("w5 w6",))}, "--track 'w5 w6'"),
        ({"generation": GenerationSettings(64)}, "--generate 64: the model reads 64 tokens"),
        (edit_of(3), r"edits\[0\].layers: '3': the model has layers 0 to 2"),
    ],
    ids=["top-k", "heads", "positions", "track", "generate", "edits"],
)
def test_what_does_not_fit(model: ModelSettings, asked: dict[str, Any], words: str) -> None:
    """Each is told by its option."""
    with pytest.raises(UsageError, match=words):
        inspect_model(WorkerSettings(model, **asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"lens": LensSettings(top_k=VOCABULARY)},
        {"lens": LensSettings(heads="2", track=("w5",))},
        {"generation": GenerationSettings(63)},
        edit_of(2),
    ],
    ids=["top-k", "heads", "generate", "edits"],
)
def test_what_just_fits(model: ModelSettings, asked: dict[str, Any]) -> None:
    """The largest of each is accepted."""
    assert inspect_model(WorkerSettings(model, **asked)).n_layers == 3


def test_a_folder_may_be_named_in_any_words(tmp_path: Path) -> None:
    """A broken model here is told as such, whatever its path has in common with what a hub says."""
    folder = tmp_path / "gated-401"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="its configuration or tokenizer cannot be read"):
        inspect_model(WorkerSettings(ModelSettings(str(folder))))
