"""Generation by an edited model: each step is read as one pass of the edited model over the whole text reads it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raylens.storage.record import Prompt
from raylens.workers.interventions.edits import read_edits
from raylens.workers.settings import GenerationSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.models import save, sentence
from tests.unit.test_generation import TEXTS, assert_same_lens, new_ids, prompts, records

NEW = 6
VECTOR = {"values": torch.linspace(-2, 2, 32).tolist()}
#: Families that go on from a cache, and one whose steps read all anew; taps that are a module's output, its input, and neither.
CASES = [
    ("llama", {"tap": "attn_out", "layers": 1, "add": VECTOR}),
    ("llama", {"tap": "resid_mid", "layers": "0,2", "add": VECTOR}),
    ("llama", {"tap": "resid_pre", "layers": 2, "scale": -3.0}),
    ("gemma2", {"tap": "mlp_out", "layers": "all", "zero": True}),
    ("gpt2", {"tap": "resid_post", "layers": 1, "positions": "2:", "add": VECTOR}),
    ("recurrent_gemma", {"tap": "attn_out", "layers": 1, "scale": 4.0}),
]


def worker(folder: Path, edit: dict[str, Any] | None, generate: int | None = None, positions: str = "last") -> Worker:
    lens = LensSettings(5, positions=positions, logprobs="float32", stats=("kl", "next_rank"))
    edits = read_edits({"edits": [edit]}) if edit else ()
    return Worker(
        WorkerSettings(
            ModelSettings(str(folder)), lens, edits=edits, generation=GenerationSettings(generate) if generate else None
        )
    )


@pytest.mark.parametrize(("name", "edit"), CASES, ids=[f"{name}-{edit['tap']}" for name, edit in CASES])
def test_steps_are_those_of_an_edited_pass(tmp_path: Path, name: str, edit: dict[str, Any]) -> None:
    """Prompts of different lengths together; the last block has the next token on top, and not always the plain one."""
    folder = save(tmp_path, name)
    found = records(worker(folder, edit, NEW), prompts(TEXTS))
    again = [Prompt(record.index, record.id, token_ids=record.token_ids) for record in found]
    for record, whole in zip(found, records(worker(folder, edit, positions="all"), again), strict=True):
        assert_same_lens(record, whole)
        assert record.taps["resid_post"].ids[-1, :, 0].tolist() == new_ids(record)
    plain = records(worker(folder, None, NEW), prompts(TEXTS))
    assert any(new_ids(record) != new_ids(other) for record, other in zip(found, plain, strict=True))


def test_an_edit_of_the_prompt_alone_is_carried_by_the_cache(tmp_path: Path) -> None:
    """A patch of the prompt's last token changes what is generated after it, though no generated token is edited."""
    folder = save(tmp_path)
    edit = {"tap": "resid_post", "layers": 0, "positions": "last", "patch": {"prompt": sentence([30, 31])}}
    found = records(worker(folder, edit, NEW), prompts(TEXTS))
    for record, ids in zip(found, TEXTS, strict=True):
        for step in range(1, NEW):  # the same edit at the same absolute place of the longer text
            place = {**edit, "positions": str(len(ids) - 1)}
            longer = Prompt(0, "longer", token_ids=record.token_ids[: len(ids) + step])
            (whole,) = records(worker(folder, place), [longer])
            assert whole.taps["resid_post"].ids[-1, -1, 0] == new_ids(record)[step]
