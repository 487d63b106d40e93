"""The real demo model, SmolLM2-135M: the lens says what the model says."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from rich.text import Text

import raylens
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.capture import capture
from raylens.workers.model import load_model
from raylens.workers.settings import DType, ModelSettings
from tests.builders import same
from tests.command import raylens_command

TEXT = "The capital of France is"


@cache
def demo(dtype: DType = "float32") -> tuple[Any, Any, Adapter]:
    model, tokenizer = load_model(ModelSettings("demo", dtype=dtype))
    return model, tokenizer, adapt(model)


@torch.no_grad()
def model_logits(text: str, dtype: DType = "float32") -> torch.Tensor:
    """[T, V] as transformers gives them, on the CPU."""
    model, tokenizer, _ = demo(dtype)
    return model(**tokenizer(text, return_tensors="pt").to(model.device)).logits[0].cpu()


def test_last_layer_is_the_models_prediction() -> None:
    """The last layer's first token is Paris, and the whole distribution is log_softmax of the model's logits to 1e-4."""
    size = demo()[0].config.vocab_size
    record = raylens.lens(TEXT, dtype="float32", top_k=size, layers="-1:", taps="resid_post")
    exact = torch.log_softmax(model_logits(TEXT).double(), dim=1).numpy()
    lens = record.taps["resid_post"]
    assert record.tokens[0] == "The"
    assert demo()[1].decode([int(lens.ids[0, -1, 0])]) == " Paris"
    assert sorted(lens.ids[0, -1].tolist()) == list(range(size))
    found = np.take_along_axis(exact, lens.ids[0].astype(np.int64), axis=1)
    assert np.abs(lens.logprobs[0] - found).max() < 1e-4
    assert np.abs(lens.entropy[0] + (np.exp(exact) * exact).sum(axis=1)).max() < 1e-4
    assert np.abs(lens.logsumexp[0] - model_logits(TEXT).double().logsumexp(dim=1).numpy()).max() < 1e-4


def test_record_of_every_layer_and_tap() -> None:
    """By default each of the 30 layers has its four taps at every position, best first, and the embedding can be asked for."""
    record = raylens.lens(TEXT, dtype="float32")
    assert record.layers == list(range(30))
    assert list(record.taps) == ["attn_out", "resid_mid", "mlp_out", "resid_post"]
    for lens in record.taps.values():
        assert lens.ids.shape == lens.logprobs.shape == (30, 5, 10)
        assert lens.logprobs.dtype == np.float32
        assert (np.diff(lens.logprobs, axis=2) <= 0).all()
    embedding = raylens.lens(TEXT, dtype="float32", taps="resid_pre", top_k=1)
    assert embedding.taps["resid_pre"].ids.shape == (1, 5, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_certificate_is_within_its_bounds(dtype: DType) -> None:
    """Real weights, with entries of the residual in the ten thousands, are certified whole, and within the stated bounds."""
    certificate = demo(dtype)[2].certificate
    assert certificate["refused"] == {}
    assert set(certificate["sums"]) == {"resid_pre + attn_out = resid_mid", "resid_mid + mlp_out = resid_post"}
    assert max(certificate["sums"].values()) < (1e-6 if dtype == "float32" else 2**-7)
    assert certificate["lens"]["error"] <= certificate["lens"]["allowed"] < (2e-4 if dtype == "float32" else 1.0)
    assert certificate["runs"]["padding_error"] <= certificate["runs"]["allowed"]


def test_bfloat16_lens_is_within_the_bound_on_text() -> None:
    """On a text that is not the probe the lens in bfloat16 differs from the model's own logits by no more than allowed."""
    size = demo("bfloat16")[0].config.vocab_size
    record = raylens.lens(TEXT, dtype="bfloat16", top_k=size, layers="-1:", taps="resid_post", positions="last")
    lens = record.taps["resid_post"]
    logits = lens.logprobs[0, 0] + lens.logsumexp[0, 0]
    own = model_logits(TEXT, "bfloat16")[-1].float().numpy()[lens.ids[0, 0].astype(np.int64)]
    assert np.abs(logits - own).max() <= demo("bfloat16")[2].certificate["lens"]["allowed"]
    assert demo()[1].decode([int(lens.ids[0, 0, 0])]) == " Paris"


@pytest.mark.parametrize(("text", "kind"), [("", "empty"), ("word " * 9000, "too_long")])
def test_text_that_cannot_be_lensed(text: str, kind: str) -> None:
    """An empty text and one longer than the model can read are refused with the reason."""
    with pytest.raises(raylens.RaylensError, match=rf"cannot lens this text \({kind}\)"):
        raylens.lens(text, dtype="float32")


@torch.no_grad()
def test_walk_of_the_real_model_against_float64() -> None:
    """All four taps of all layers from half the products: logprobs to 2e-4, ids but for neighbours closer than that."""
    model, tokenizer, adapter = demo()
    assert adapter.walk is not None
    assert adapter.walk.error < 1.5e-4
    rows: dict[tuple[str, int], torch.Tensor] = {}
    ids = tokenizer(TEXT, return_tensors="pt").to(model.device)
    hooks = {(tap, layer): site for layer, block in enumerate(adapter.sites) for tap, site in block.items()}
    with capture(hooks, torch.tensor([0, 4]), lambda tap, layer, hidden: rows.update({(tap, layer): hidden})):
        model(**ids)
    record = raylens.lens(TEXT, dtype="float32")
    weight, gain = model.lm_head.weight.double(), model.model.norm.weight.double()
    for (tap, layer), hidden in rows.items():
        if tap == "resid_pre":
            continue
        x = hidden.double()
        normed = x / (x.square().mean(dim=1, keepdim=True) + model.config.rms_norm_eps).sqrt() * gain
        exact, found = torch.log_softmax(normed @ weight.T, dim=1), record.taps[tap]
        chosen = torch.from_numpy(found.ids[layer, [0, 4]].astype(np.int64))
        best = exact.topk(10, dim=1).values
        assert float((torch.from_numpy(found.logprobs[layer, [0, 4]]) - best).abs().max()) < 2e-4, (tap, layer)
        assert float((exact.gather(1, chosen) - best).abs().max()) < 4e-4, (tap, layer)


def test_lens_prints_the_grid() -> None:
    """In a pipe: no colour, every position, the last layer first; as JSON the whole record."""
    done = raylens_command("lens", TEXT, "-m", "demo", "--layer-step", "10")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["layer", "29"], ["layer", "19"], ["layer", "9"]]
    assert "·Paris" in lines[1]
    assert all(line.isprintable() for line in lines)
    record = json.loads(raylens_command("lens", TEXT, "-m", "demo", "-k", "2", "--json").stdout)
    assert record["taps"]["resid_post"]["tokens"][-1][-1][0] == " Paris"
    done = raylens_command("lens", TEXT, "-m", "demo", "--stat", "kl", "--layers", "28,29")
    assert (done.returncode, "layer 29" in done.stdout, "layer 27" in done.stdout) == (0, True, False), done.stderr


def test_lens_follows_a_token() -> None:
    """Its exact rank colours the grid, and a terminal is told what the colours mean."""
    given = ("lens", TEXT, "-m", "demo", "--track", " London")
    record = json.loads(raylens_command(*given, "--json").stdout)
    ranks = [layer[-1][0] for layer in record["taps"]["resid_post"]["stats"]["tracked_rank"]]
    assert max(ranks) > 1000
    assert 1 < ranks[-1] < 100
    done = raylens_command(*given, "--layer-step", "6", env={"FORCE_COLOR": "1", "COLUMNS": "100"})
    last = Text.from_ansi(done.stdout).plain.rstrip().splitlines()[-1]
    assert (done.returncode, last) == (0, " 1  10  100  ≥1000  rank of ·London, log scale"), done.stderr
    refused = raylens_command(*given, "--stat", "entropy")
    assert (refused.returncode, "--track: entropy does not depend on a token" in refused.stderr) == (2, True)
    unknown = raylens_command("lens", TEXT, "-m", "demo", "--track", "the London")
    assert (unknown.returncode, "--track 'the London': no single token of this model" in unknown.stderr) == (2, True)


def test_lens_of_a_tap_that_is_not_lensed_by_default() -> None:
    """--tap takes any tap, and refuses heads before the model is loaded."""
    done = raylens_command("lens", TEXT, "-m", "demo", "--tap", "resid_pre", "--layers", "0,29")
    assert (done.returncode, "·capital" in done.stdout) == (0, True), done.stderr
    done = raylens_command("lens", TEXT, "-m", "demo", "--tap", "resid_pre", "--lens", "tuned:nowhere")
    assert (done.returncode, "nowhere" in done.stderr) == (4, True), "the file is looked for, no other tap is refused"
    done = raylens_command("lens", TEXT, "-m", "nosuch", "--tap", "head_3")
    assert (done.returncode, "--tap head_3: name one of resid_pre, " in done.stderr) == (2, True)


def test_threads_take_turns() -> None:
    """Calls from several threads give what each would alone."""
    texts = ["The capital of France is", "The capital of Spain is", "Two and two make"]
    alone = [raylens.lens(text, dtype="float32", layers="-3:") for text in texts]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda text: raylens.lens(text, dtype="float32", layers="-3:"), texts * 4))
    assert all(same(one, other) for one, other in zip(found, alone * 4, strict=True))


def test_doctor_prints_the_certificate() -> None:
    """raylens doctor says what is hooked and how exact the lens is; as JSON it is the certificate itself."""
    done = raylens_command("doctor", "--model", "demo", "--json")
    assert done.returncode == 0, done.stderr
    certificate = json.loads(done.stdout)
    assert certificate["lens"]["error"] <= certificate["lens"]["allowed"]
    assert certificate["sums"]["resid_mid + mlp_out = resid_post"] < 1e-5
    assert certificate["refused"] == {}
