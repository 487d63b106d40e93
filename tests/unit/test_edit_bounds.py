"""The most that an intervention may hold is read, and a hook leaves alone what others hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raylens.storage.errors import UsageError
from raylens.workers.interventions.checking import check_edits
from raylens.workers.interventions.edits import MOST_EDITS, MOST_VALUES, read_edits
from raylens.workers.interventions.hooks import change_output

SCALED = {"tap": "attn_out", "layers": 1, "scale": 2.0}


def of_prompt(**source: Any) -> dict[str, Any]:
    """A file of one edit that adds what a tap holds for a prompt."""
    return {"edits": [{"tap": "attn_out", "layers": 1, "add": {"prompt": "a b c", **source}}]}


def test_as_many_edits_and_numbers_as_are_allowed(tmp_path: Path) -> None:
    """Limits are what may be given, not the first that may not: of edits, of a vector's numbers, and of a number."""
    assert len(read_edits({"edits": [SCALED] * MOST_EDITS})) == MOST_EDITS
    save_file({"v": torch.ones(MOST_VALUES), "w": torch.ones(MOST_VALUES + 1)}, tmp_path / "v.safetensors")
    for key, add in [("v", {"values": [1.0] * MOST_VALUES}), ("w", {"values": [1.0] * (MOST_VALUES + 1)})]:
        (tmp_path / "e.json").write_text(
            json.dumps({"edits": [{"tap": "attn_out", "layers": 1, "add": {"file": "v.safetensors", "key": key}}]})
        )
        given = {"edits": [{"tap": "attn_out", "layers": 1, "add": add}]}
        if key == "v":
            assert read_edits(tmp_path / "e.json") == read_edits(given)
        else:
            for one in (tmp_path / "e.json", given):
                with pytest.raises(UsageError, match=r"edits\[0\]\.add\.(file|values): "):
                    read_edits(one)
    (edit,) = read_edits({"edits": [{**SCALED, "scale": -3e38}]})
    assert edit.scale == -3e38


def test_the_tap_of_a_prompt_by_its_other_names() -> None:
    """A name of LogitLens4LLMs stands for a tap there too, so that the model is asked for one that it has."""
    (edit,) = read_edits(of_prompt(tap="block_output"))
    assert edit.add is not None
    assert edit.add.tap == "resid_post"
    assert read_edits(of_prompt(tap="attention_mechanism")) == read_edits(of_prompt(tap="attn_out"))


@pytest.mark.parametrize("source", [{"position": -3}, {"position": 2}, {"layer": 0}, {"layer": 3}, {"position": "last"}])
def test_the_ends_of_a_prompt_and_of_the_model(source: dict[str, Any]) -> None:
    """The first and the last token and layer are there, and a prompt as long as the model reads is not too long."""
    check_edits(read_edits(of_prompt(**source)), lambda text: [1] * len(text.split()), layers=4, width=2, longest=3)


def test_a_tensor_that_a_module_keeps_stays_as_it_is() -> None:
    """What a module gives may be its own, as a buffer or a cache is: the edit is of what comes after, and only there."""

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.arange(12.0).view(1, 3, 4)

        def forward(self, _hidden: Tensor) -> Tensor:
            return self.own

    module = Kept()
    remove = change_output(module, torch.tensor([0, 2]), lambda rows: rows * 2)
    for _ in range(2):
        changed = module(torch.zeros(1))
        assert changed[0].tolist() == [[0, 2, 4, 6], [4, 5, 6, 7], [16, 18, 20, 22]]
    remove()
    assert torch.equal(module(torch.zeros(1)), torch.arange(12.0).view(1, 3, 4))


def test_a_file_of_brackets_within_brackets(tmp_path: Path) -> None:
    """Nesting is told at its limit, before anything is built from it; up to there it is read and found to be no edits."""
    for deep, problem in [(33, "line 1: nests more than 32 deep"), (32, "Expected `object`, got `array`")]:
        (tmp_path / "e.yaml").write_text("[" * deep + "]" * deep)
        with pytest.raises(UsageError) as refused:
            read_edits(tmp_path / "e.yaml")
        assert problem in str(refused.value)
