"""Exports of a run of a real small model, by the command line, read by what they are for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import raylens
from raylens.storage.store import Store
from tests.command import raylens_command
from tests.waiting import HUNG

pytestmark = pytest.mark.usefixtures("shared_ray")

TEXTS = ["call me ishmael", "some years ago, never mind “how long” 日本", "<i>it</i>\n is a damp november\\"]


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The small model with a head so strong that percents are from 0 to 9, and some layers pass the threshold."""
    folder = tmp_path_factory.mktemp("sharp")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sharp: Path) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    (folder / "c.jsonl").write_text("".join(json.dumps({"id": f"a/{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    options = ["-m", str(sharp), "-o", "st", "--name", "r", "--logprobs", "float32", "--stats", "kl,next_logprob,next_rank"]
    done = raylens_command("run", "c.jsonl", *options, "--positions", "last:2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "st"


def export(store: Path, kind: str, output: Path) -> dict[str, Any]:
    """What the command says it wrote."""
    done = raylens_command("export", "r", "--format", kind, "-o", str(output), "--json", "--store", str(store))
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


class Seen:
    """Each component's share in a block, at the last token, by hooks of our own."""

    def __init__(self, model: Any) -> None:
        self.layers: list[dict[str, Tensor]] = [{} for _ in model.model.layers]
        for seen, block in zip(self.layers, model.model.layers, strict=True):
            block.self_attn.register_forward_hook(self._keep(seen, "attention_mechanism"))
            block.post_attention_layernorm.register_forward_pre_hook(
                lambda _module, args, seen=seen: seen.update(intermediate_residual=args[0][0, -1])
            )
            block.mlp.register_forward_hook(self._keep(seen, "mlp_output"))
            block.register_forward_hook(self._keep(seen, "block_output"))

    @staticmethod
    def _keep(seen: dict[str, Tensor], name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output)[0, -1]

        return hook


@torch.no_grad()
def seed_files(folder: Path) -> dict[str, Any]:
    """What LogitLens4LLMs keeps of each text, by its rule: softmax of head(norm(x)), ten best, percents cut to integers; layers
    with a component over 3 %, without the middle residual."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    seen = Seen(model)
    every, important = {}, {}
    for number, text in enumerate(TEXTS):
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
        said = {"input_text": text, "predicted_token": tokenizer.decode([int(logits.argmax())])}
        layers: dict[str, Any] = {}
        for layer, components in enumerate(seen.layers):
            layers[str(layer)] = {}
            for name in ("attention_mechanism", "intermediate_residual", "mlp_output", "block_output"):
                values, ids = torch.topk(torch.softmax(model.lm_head(model.model.norm(components[name])), dim=-1), 10)
                tokens = tokenizer.batch_decode(ids.unsqueeze(-1))
                percents = [int(value * 100) for value in values.tolist()]
                layers[str(layer)][name] = [list(pair) for pair in zip(tokens, percents, strict=True)]
        kept = {}
        for layer, found in layers.items():
            chosen = {name: found[name] for name in ("attention_mechanism", "mlp_output", "block_output")}
            if max(percent for best in chosen.values() for _, percent in best) > 3:
                kept[layer] = chosen
        every[f"step_{number}"] = {**said, "all_layers_data": layers}
        important[f"step_{number}"] = {**said, "important_layers": kept}
    return {"all_layers.json": every, "important_layers.json": important}


def test_logitlens4llms_is_what_the_seed_writes(store: Path, sharp: Path, tmp_path: Path) -> None:
    """Both files, byte for byte."""
    assert export(store, "logitlens4llms", tmp_path / "out") == {
        "file": str(tmp_path / "out"),
        "format": "logitlens4llms",
        "run": "r",
        "records": 3,
    }
    expected = seed_files(sharp)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(expected)
    for name, value in expected.items():
        assert (tmp_path / "out" / name).read_bytes() == json.dumps(value, indent=2, ensure_ascii=False).encode()
    kept = [len(step["important_layers"]) for step in expected["important_layers.json"].values()]
    assert {1, 2} == set(kept)  # so that the threshold matters


def test_datasets_reads_the_parquet_file(store: Path, tmp_path: Path) -> None:
    """``load_dataset("parquet", ...)`` without network: the rows and the types."""
    export(store, "parquet", tmp_path / "r.parquet")
    script = (
        "import json, sys, datasets\n"
        "data = datasets.load_dataset('parquet', data_files=sys.argv[1], split='train')\n"
        "print(json.dumps({'rows': data.to_list(), 'types': {name: f.dtype for name, f in data.features.items()}}))"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", script, str(tmp_path / "r.parquet")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == Store(store)["r"].to_arrow().to_pylist()
    assert (found["types"]["id"], found["types"]["layer"], found["types"]["logprob"]) == ("string", "uint16", "float32")


def test_tuned_lens_agrees_with_the_model(store: Path, sharp: Path, tmp_path: Path) -> None:
    """Cross-entropy of the last block is the model's own; every metric has each layer."""
    export(store, "tuned-lens", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(sharp).eval(), AutoTokenizer.from_pretrained(sharp)
    losses = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            losses.append(-torch.log_softmax(model(ids).logits[0, -2], dim=-1)[ids[0, -1]].item())
    assert found["baseline"]["ce"]["final"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert set(found["logit"]) == {"entropy", "ce", "kl"}
    assert {name for layers in found["logit"].values() for name in layers} == {"layer_1"}


@pytest.mark.parametrize("kind", ["csv", "logitlenskit", "parquet", "tuned-lens"])
def test_stdout_and_file_are_alike(store: Path, tmp_path: Path, kind: str) -> None:
    """The same bytes to stdout; an older file is replaced whole, or stays."""
    export(store, kind, tmp_path / "x")
    command = [sys.executable, "-m", "raylens", "export", "r", "--format", kind, "--store", str(store)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "x").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_the_name_of_a_file_says_its_format(store: Path, tmp_path: Path, kind: str) -> None:
    """Where the option does not."""
    export(store, kind, tmp_path / "given")
    done = raylens_command("export", "r", "-o", str(tmp_path / f"x.{kind}"), "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"x.{kind}").read_bytes() == (tmp_path / "given").read_bytes()


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "page.html", "folder", "x.json"])
def test_from_python(store: Path, tmp_path: Path, name: str) -> None:
    """The same files as by the command; the format by the name, or as said."""
    said = {"folder": "logitlens4llms", "x.json": "tuned-lens"}.get(name)
    prompt, positions = ("a/1", "last") if name == "page.html" else (None, None)
    options = [*(("--format", said) if said else ()), *(("--positions", positions) if positions else ())]
    address, theirs, ours = f"r/{prompt}" if prompt else "r", tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    done = raylens_command("export", address, *options, "-o", str(theirs / name), "--store", str(store))
    assert done.returncode == 0, done.stderr
    raylens.open(store)["r"].export(ours / name, said, prompt, positions)
    found = [path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()]
    assert found
    assert all((ours / path).read_bytes() == (theirs / path).read_bytes() for path in found)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"output": "x.html"}, r"^format html: a page is of one prompt; name it as r/PROMPT, in Python by prompt_id"),
        ({"output": "x.csv", "prompt_id": "a/0"}, r"^format csv: 'a/0' names a prompt; of one there are html and"),
        ({"output": "x.csv", "positions": 3}, r"^positions: does not go with format csv"),
        ({"output": "x", "format": "pickle"}, r"^format pickle: choose from jsonl, "),
        ({"output": "x.html", "prompt_id": "a/0", "positions": 0}, r"^positions '0': none of them was lensed"),
        ({"output": "x.html", "prompt_id": "b"}, r"^run 'r' has no prompt 'b'"),
        ({"output": "nowhere/x.csv"}, r"^output nowhere/x\.csv: No such file"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value["output"],
)
def test_refused_from_python(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    """In the words of Python, and nothing is written."""
    run = raylens.open(store)["r"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(raylens.UsageError, match=told):
        run.export(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_through_no_link_of_a_stranger(store: Path, tmp_path: Path) -> None:
    """In a folder like /tmp anybody may have put one where the file is written before it is whole."""
    kept = tmp_path / "kept"
    kept.write_text("mine")
    (tmp_path / ".out.jsonl.part").symlink_to(kept)
    done = raylens_command("export", "r", "--store", str(store), "-o", str(tmp_path / "out.jsonl"))
    assert done.returncode == 0, done.stderr
    assert kept.read_text() == "mine"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", ".out.jsonl.part", "out.jsonl"}


def test_two_files_need_a_folder(store: Path, tmp_path: Path) -> None:
    """Neither stdout nor a file that is there; exit code 2."""
    (tmp_path / "file").write_text("kept")
    for output in ([], ["-o", str(tmp_path / "file")]):
        done = raylens_command("export", "r", "--format", "logitlens4llms", *output, "--store", str(store))
        assert done.returncode == 2
        assert "--output" in done.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_a_lensed_text_is_shown_in_a_notebook(tiny: Path) -> None:
    """``raylens.lens`` gives a record that knows its tokens' text."""
    html = raylens.lens("call me", model=str(tiny))._repr_html_()
    assert "‹id" not in html
    assert "<bdi>call</bdi>" in html
