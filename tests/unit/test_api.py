"""``raylens.lens``, from Python and by its command: what stays loaded between calls, and calls from several threads at once."""

import json
import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import raylens
from raylens import ModelError, RaylensError, UsageError
from raylens.scheduler.cli.lens import command
from raylens.storage.payload import encode_payload
from raylens.workers import api
from tests.models import save
from tests.tiny import save_word_llama


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has one set of hooks, so that no two texts are read at a time."""
    inside: list[str] = []
    most: list[int] = []

    def slow(_worker: Any, text: str) -> None:
        inside.append(text)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(text)

    monkeypatch.setattr(api, "loaded", lambda _settings: None)
    monkeypatch.setattr(api, "read", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(raylens.lens, "abcd"))
    assert most == [1, 1, 1, 1]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Two small models of the same words and other weights, which end a text with every third token."""
    found = save_word_llama(tmp_path / "one"), save_word_llama(tmp_path / "other", seed=5)
    for folder in found:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 256, 3))}))
    return str(found[0]), str(found[1])


def test_what_is_no_text_from_python(folders: tuple[str, str]) -> None:
    """Layers and positions may be numbers, of layers a list too, and the model a path: each stands for its text."""
    record = raylens.lens("call me ishmael", model=folders[0], layers=[0, -1], positions=-2)
    assert (record.layers, record.positions) == ([0, 1], [1])
    assert raylens.lens("call me ishmael", model=folders[0], layers=1, positions=0).layers == [1]
    given: dict[str, Any] = {
        "layers": np.array([0, 1]),
        "positions": np.int64(-2),
        "top_k": np.int32(3),
        "track": torch.tensor([7]),
        "stats": np.array(["kl", "next_rank"]),
    }
    record = raylens.lens("call me ishmael", model=folders[0], generate=None, seed=np.int64(0), **given)  # type: ignore[arg-type]
    assert (record.layers, record.positions, record.tracked, record.taps["resid_post"].ids.shape[-1]) == ([0, 1], [1], [7], 3)
    assert raylens.lens("call me", model=Path(folders[0]), layers=1).layers == [1]
    with pytest.raises(RaylensError, match="layers '9': the model has layers 0 to 1"):
        raylens.lens("call me", model=folders[0], layers=9)
    for many in ([0, 1], {0, 1}, range(2)):
        assert raylens.lens("call me", model=folders[0], layers=many).layers == [0, 1]
        with pytest.raises(RaylensError, match=r"positions: give text, .* not a list"):
            raylens.lens("call me", model=folders[0], positions=many)  # type: ignore[arg-type]
    with pytest.raises(RaylensError, match=r"layers: give text, .* not a number"):
        raylens.lens("call me", model=folders[0], layers=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [b"call me", bytearray(b"call me")])
def test_bytes_are_no_text(given: Any) -> None:
    """Nobody knows their encoding but who has them."""
    with pytest.raises(UsageError, match=r"the text is a byte.*; decode it to a str"):
        raylens.lens(given)
    with pytest.raises(UsageError, match=r"rows is one byte.*; give a list of texts or dictionaries"):
        raylens.run(given, model="demo")


LONG = "n" * 5000


@pytest.mark.parametrize(
    "given",
    [
        *(
            {name: LONG}
            for name in ("model", "dtype", "layers", "heads", "taps", "stats", "positions", "track", "lens", "intervene")
        ),
        {"device_map": "{" + LONG},
        {"lens": f"linear:{LONG}"},
        {"taps": [LONG, LONG]},
        {"track": [[LONG]]},
        {"top_k": LONG},
    ],
    ids=lambda given: f"{next(iter(given))}",
)
def test_a_long_value_is_told_by_its_beginning(folders: tuple[str, str], given: dict[str, Any]) -> None:
    """What was wrong with it, and what to do, would be lost behind it."""
    with pytest.raises(RaylensError) as refused:
        raylens.lens("call me", **{"model": folders[0], **given})
    assert len(str(refused.value)) < 600


def test_a_tap_that_the_model_lacks(tmp_path: Path) -> None:
    """The command says why it is not there, as a run does."""
    save(tmp_path, "gpt_neox")
    for name in ("resid_mid", "intermediate_residual"):
        why = rf"--tap {name}: .* in parallel.*; choose from resid_pre, attn_out, mlp_out, resid_post"
        with pytest.raises(ModelError, match=why):
            command.main(["w5 w7", "-m", str(tmp_path), "--tap", name], standalone_mode=False)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models there were already, each time one was made."""
    there: weakref.WeakSet[Any] = weakref.WeakSet()
    found: list[int] = []
    init = LlamaForCausalLM.__init__

    def seen(self: Any, *args: Any, **more: Any) -> None:
        found.append(len(there))
        there.add(self)
        init(self, *args, **more)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", seen)
    return found


#: Questions about one text, after each of which another worker is needed.
ASKED: tuple[dict[str, Any], ...] = (
    {"top_k": 3},
    {"stats": "kl,next_rank", "track": "me"},
    {"intervene": {"edits": [{"tap": "attn_out", "layers": 1, "scale": 0}]}},
    {"generate": 8},
    {"heads": "all", "stats": "attribution,best_attribution", "track": "me"},
    {"generate": 8, "temperature": 1.0, "seed": 4},
    {"layers": "1", "taps": "resid_post"},
    {"top_k": 3},
)


def test_one_model_is_read_once_for_many_questions(folders: tuple[str, str], beside: list[int]) -> None:
    """Each has the answer of a process that was asked nothing else; the next model is read when the last one is gone."""
    texts = ["call me", "you may"]
    asked = [(model, text, more) for model in folders for more in ASKED for text in texts]
    found = [encode_payload(raylens.lens(text, model=model, **more)) for model, text, more in asked]
    assert beside == [0, 0]
    for (model, text, more), answer in zip(asked[:: len(texts) + 1], found[:: len(texts) + 1], strict=True):
        raylens.lens("me", model=folders[folders[0] == model])  # so that this one is read anew
        assert encode_payload(raylens.lens(text, model=model, **more)) == answer


def test_a_model_that_was_saved_anew_is_read_anew(folders: tuple[str, str], tmp_path: Path) -> None:
    """In the same folder and of the same sizes, as a training that goes on saves it."""
    one, other = (raylens.lens("call me", model=model) for model in folders)
    assert one.taps["resid_post"].logprobs.tolist() != other.taps["resid_post"].logprobs.tolist()
    raylens.lens("call me", model=folders[0])
    shutil.rmtree(folders[0])  # written over, the files would change what is mapped into memory
    shutil.copytree(folders[1], folders[0])
    again = raylens.lens("call me", model=folders[0])
    assert again.taps["resid_post"].logprobs.tolist() == other.taps["resid_post"].logprobs.tolist()
