"""What attention heads write, against the output projection's weights in float64, and against what changes one head only."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError, UsageError
from raylens.storage.record import Record
from raylens.storage.taps import head_tap
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.attribution import find_attribution
from raylens.workers.batching import pad
from raylens.workers.heads import Heads, find_heads
from raylens.workers.lens import Lens
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings, check
from tests.models import FAMILIES, build, make
from tests.unit.test_lens import built, compare, every_device, logits64, prompts, rms

COUNT = 4
#: Family -> layers without heads, and words of the reason; no layers at all where none is given.
WITHOUT: dict[str, tuple[tuple[int, ...], str]] = {
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "granitemoehybrid", "jamba", "bamba", "lfm2", "lfm3"), ((0, 2), "no attention over heads")
    ),
    "recurrent_gemma": ((0, 1), "no attention over heads"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), ((0, 1, 2), "no attention over heads")),
    "granitemoehybrid, experts": ((0, 1, 2), "was not found"),
    "minimax": ((0, 1, 2), "was not found"),
    "openai-gpt": ((0, 1, 2), "was not found"),
    "falcon_h1": ((0, 1, 2), "no one known module's output"),
    "nemotron_h": ((0, 1, 2), "parts of different kinds"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_heads_or_is_refused(name: str) -> None:
    """Four in each layer of attention, whose writes sum to attn_out; other layers are refused with the reason."""
    model, adapter = built(name)
    without, words = WITHOUT.get(name, ((), ""))
    for layer in range(3):
        if layer in without:
            with pytest.raises(ModelError, match=words):
                find_heads(model, adapter, (layer,))
        else:
            (found,) = find_heads(model, adapter, (layer,)).values()
            assert (found.count, found.error <= 1e-5) == (COUNT, True)


def lensed(model: Any, adapter: Adapter, layers: tuple[int, ...], **settings: Any) -> list[Record]:
    chosen = LensSettings(**{"top_k": 10, "logprobs": "float32", "stats": ("attribution",), **settings})
    heads, attribution = find_heads(model, adapter, layers), find_attribution(model, adapter)
    lens = Lens(adapter, chosen, (1, 2), ("attn_out", "resid_post"), 2, heads=heads, attribution=attribution)
    outcomes = lens(pad(prompts(tracked=(5, 300)), model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def read_by(model: nn.Module, projection: nn.Module, ids: list[int]) -> Tensor:
    """[T, H * d] of what a projection reads."""
    found: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _module, args: found.append(args[0].detach()[0].double()))
    model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), use_cache=False)
    hook.remove()
    return found[0]


@every_device
@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("llama", "self_attn.o_proj"),
        ("gpt2", "attn.c_proj"),
        ("gptj", "attn.out_proj"),
        ("gemma2", "self_attn.o_proj"),
        ("granite", "self_attn.o_proj"),
    ],
)
def test_the_lens_of_a_head_against_float64(name: str, projection: str, device: str) -> None:
    """Each head's slice of the weight times what the projection reads, behind a norm by that norm's factor, everywhere."""
    model, adapter = built(name, device)
    block = model.get_submodule(FAMILIES[name].stack)[2]
    module = block.get_submodule(projection)
    weight = module.weight.detach().double() if name == "gpt2" else module.weight.detach().double().T  # [H * d, D]
    for record in lensed(model, adapter, (0, 2)):
        inputs = read_by(model, module, record.token_ids)
        width = inputs.shape[1] // COUNT
        for head in range(COUNT):
            own = slice(head * width, (head + 1) * width)
            written = inputs[:, own] @ weight[own]
            if name == "gemma2":
                whole = inputs @ weight
                written = written * (rms(whole, block.post_attention_layernorm, 1.0) / whole)
            exact = torch.log_softmax(logits64(name, model, written * FAMILIES[name].scale), dim=1).cpu()
            assert record.taps[head_tap(head)].layers == (0, 2)
            compare(record, head_tap(head), 2, exact.detach())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "olmo2", "phi", "opt", "starcoder2"])
def test_a_head_is_where_its_queries_are(name: str) -> None:
    """Other queries for one head change what that head writes and, before a norm, nothing else: slices are not shifted."""
    model, adapter = build(name), built(name)[1]
    attention = model.get_submodule(FAMILIES[name].stack)[0].self_attn
    weight = attention.q_proj.weight
    (heads,) = find_heads(model, adapter, (0,)).values()
    heads = Heads(heads.projection, heads.name, heads.count, heads.scale)  # without the norm behind it
    before = dict(heads.writes(read_by(model, heads.projection, [7, 30, 2, 250, 9]).float()))
    kept = weight.detach().clone()
    try:
        for changed in range(COUNT):
            rows = slice(changed * len(weight) // COUNT, (changed + 1) * len(weight) // COUNT)
            with torch.no_grad():
                weight[rows] = -3 * kept[rows].flip(1)
            after = dict(heads.writes(read_by(model, heads.projection, [7, 30, 2, 250, 9]).float()))
            with torch.no_grad():
                weight.copy_(kept)
            moved = {
                head for head in range(COUNT) if not torch.allclose(before[head_tap(head)], after[head_tap(head)], atol=1e-5)
            }
            assert moved == {changed} or name == "olmo2", "whose queries are normed all together"
            assert changed in moved
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_heads_of_differential_attention() -> None:
    """Each is made of two query heads, which no sum of writes would tell: half as many, and other queries change but one."""
    model = make("diffllama", **{**FAMILIES["llama"].config, "num_key_value_heads": 4})
    attention = model.model.layers[1].self_attn
    (heads,) = find_heads(model, adapt(model), (1,)).values()
    assert heads.count == COUNT // 2
    before = dict(heads.writes(read_by(model, heads.projection, [7, 30, 2, 250, 9]).float()))
    with torch.no_grad():
        attention.q_proj.weight[: len(attention.q_proj.weight) // COUNT] *= -3
    after = dict(heads.writes(read_by(model, heads.projection, [7, 30, 2, 250, 9]).float()))
    assert [torch.allclose(before[tap], after[tap], atol=1e-6) for tap in before] == [False, True]


@pytest.mark.parametrize("scale", [1, 60])
@pytest.mark.parametrize(("name", "projection"), [("gpt2", "attn.c_proj"), ("starcoder2", "self_attn.o_proj")])
def test_heads_in_a_short_type(name: str, projection: str, scale: float) -> None:
    """A head's write, which the model nowhere has, is not rounded to its type; nor is it by a large bias of the projection."""
    model = copy.deepcopy(build(name))
    with torch.no_grad():
        for block in model.get_submodule(FAMILIES[name].stack):
            block.get_submodule(projection).bias.mul_(scale)
    model.bfloat16()
    (heads,) = find_heads(model, adapt(model), (1,)).values()
    read = read_by(model, heads.projection, [7, 30, 2, 250, 9]).bfloat16()
    weight = heads.projection.weight.detach().double()
    weight = weight if name == "gpt2" else weight.T  # [H * d, D]
    width = len(weight) // COUNT
    for head, (_, written) in enumerate(heads.writes(read)):
        own = slice(head * width, (head + 1) * width)
        exact = read[:, own].double() @ weight[own]
        assert float((written.detach().double() - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere", "granite"])
def test_terms_of_heads_sum_to_that_of_attention(name: str, walk: bool) -> None:
    """To the term of attn_out, but for the output projection's bias, which no head wrote."""
    model, adapter = built(name)
    if not walk:
        adapter = replace(adapter, walk=None)
    for record in lensed(model, adapter, (1, 2)):
        whole = record.taps["attn_out"].stats["attribution"]
        parts = sum(record.taps[head_tap(head)].stats["attribution"] for head in range(COUNT))
        rest = np.abs(parts - whole)
        if name == "gpt2":  # whose projection has a bias: the same at all positions but for the final norm's factor
            assert rest.max() > 1e-3
        else:
            assert rest.max() < 1e-4
        assert all(np.isnan(record.taps[head_tap(head)].stats["attribution_error"]).all() for head in range(COUNT))


def test_heads_change_nothing_else() -> None:
    """All other taps of a run with heads are, to the bit, those of one without."""
    model, adapter = built("llama")
    plain = Lens(adapter, LensSettings(10, logprobs="float32"), (1, 2), ("attn_out", "resid_post"))(pad(prompts(), model.device))
    for one, other in zip(lensed(model, adapter, (0, 1, 2), stats=()), plain, strict=True):
        assert isinstance(other, Record)
        for tap, lens in other.taps.items():
            assert (one.taps[tap].ids == lens.ids).all()
            assert (one.taps[tap].logprobs == lens.logprobs).all()


def test_heads_by_the_width_of_one() -> None:
    """Where the number of heads does not go with the width of one, they are refused rather than cut somewhere."""
    model, adapter = built("llama")
    model.config.num_attention_heads, kept = 2, model.config.num_attention_heads
    try:
        with pytest.raises(ModelError, match=r"block 1: the number of heads in the 32 that self_attn\.o_proj reads is not told"):
            find_heads(model, adapter, (1,))
    finally:
        model.config.num_attention_heads = kept


def test_attention_that_adds_something_else_is_refused() -> None:
    """Where what is added is twice what the projection gives, the heads' writes are not parts of it."""
    model = copy.deepcopy(build("llama"))
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _module, _args, out: (2 * out[0], *out[1:]))
    with pytest.raises(ModelError, match=r"block 1: what the heads of self_attn\.o_proj write is off by"):
        find_heads(model, adapt(model), (1,))


def test_layers_with_fewer_heads() -> None:
    """A head's tap is of the layers that have so many."""
    model, adapter = built("llama")
    heads = find_heads(model, adapter, (1, 2))
    heads[2] = replace(heads[2], count=2)
    (record,) = Lens(adapter, LensSettings(5), (2,), ("resid_post",), heads=heads)(pad(prompts(lengths=[4]), model.device))
    assert isinstance(record, Record)
    assert [record.taps[head_tap(head)].layers for head in range(COUNT)] == [(1, 2), (1, 2), (1,), (1,)]


@pytest.mark.parametrize(
    ("lens", "words"),
    [
        (LensSettings(taps=("attn_out", "head_3")), "--heads 5,8 or --heads all"),
        (LensSettings(heads="1", lens="tuned:x"), "--heads 1: works only with the logit lens"),
    ],
)
def test_settings_that_cannot_be(lens: LensSettings, words: str) -> None:
    """Each is refused with its remedy, before anything is loaded."""
    with pytest.raises(UsageError, match=words):
        check(WorkerSettings(ModelSettings("nowhere"), lens))
