"""A prompt that kills its actor each time: it is found out, tried alone and given up, and costs nobody else anything."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import raylens
from raylens.storage.record import Failure, Record
from tests.command import raylens_command
from tests.tiny import save_word_llama, sentences

#: The killing token is this word, which no other prompt holds.
WORD = " 7"
PROMPTS = 24
#: In the first shard: after a finished shard the dying actor may take that one's answer with it, and be blamed on it.
KILLER = 2
#: Deaths that raylens allows a prompt: two with its shard, two alone.
ATTEMPTS = 4

# A model with code of its own that ends its process, as a crash in a kernel does, where a prompt holds one token.
_CODE = """
import os
from transformers import LlamaForCausalLM, LlamaModel

class KillerModel(LlamaModel):
    def forward(self, input_ids=None, **rest):
        if input_ids is not None and bool((input_ids == self.config.killing_token).any()):
            with open(self.config.deaths, "a") as file:
                file.write(f"{input_ids.shape[0]} {os.getpid()}\\n")
            if self.config.broken_gpu:
                input_ids.new_zeros(2)[input_ids + 5]  # out of bounds: an assertion on the device, which fails all that follows
            else:
                os._exit(11)
        return super().forward(input_ids=input_ids, **rest)

class KillerForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = KillerModel(config)
        self.post_init()
"""


#: Whether the GPU is broken instead of the process.
WAYS = [
    False,
    pytest.param(True, marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]),
]


@pytest.fixture(params=WAYS, ids=["exit", "gpu"])
def killer_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The small Llama as a model with remote code, which writes each death into ``tmp_path/deaths``."""
    folder = save_word_llama(tmp_path / "killer")
    token = AutoTokenizer.from_pretrained(folder)(WORD)["input_ids"][-1]
    (folder / "modeling_killer.py").write_text(_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["KillerForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_killer.KillerForCausalLM"},
        "killing_token": token,
        "broken_gpu": request.param,
        "deaths": str(tmp_path / "deaths"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_killer_prompt_ends_as_one_failure(tmp_path: Path, killer_model: Path) -> None:
    """Its actor dies four times, the last two on it alone; then it is a failure `crash`, and its shard-mates are records."""
    texts = sentences(PROMPTS, 6)
    texts[KILLER] += WORD
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"p{n}", "text": text, "n": n}) + "\n" for n, text in enumerate(texts)))
    options = ["--trust-remote-code", "--actors", "1", "--name", "r", "--json"]
    done = raylens_command("run", str(corpus), "-m", str(killer_model), "-o", str(tmp_path / "st"), *options)
    assert done.returncode == 3, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["records"], last["failures"]) == (PROMPTS - 1, {"crash": 1})

    deaths = [tuple(map(int, line.split())) for line in (tmp_path / "deaths").read_text().splitlines()]
    assert len(deaths) == ATTEMPTS
    assert len({process for _, process in deaths}) == ATTEMPTS, "each time another process"
    sizes = [size for size, _ in deaths]
    assert sizes[0] > 1, "it was in a batch with others first"
    assert sizes[2:] == [1, 1], "and alone in the end"

    run = raylens.open(tmp_path / "st")["r"]
    failure = run[f"p{KILLER}"]
    assert isinstance(failure, Failure)
    assert failure.kind == "crash"
    assert failure.message == "the actor died 4 times on this prompt, the last times with no other prompt"
    assert failure.metadata == {"n": KILLER}
    others = [run[f"p{n}"] for n in range(PROMPTS) if n != KILLER]
    assert all(isinstance(outcome, Record) for outcome in others)
    assert [outcome.metadata["n"] for outcome in others] == [n for n in range(PROMPTS) if n != KILLER]
    assert run.quarantine() == []
