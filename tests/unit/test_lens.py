"""The lens over batches against softmax(unembed(final_norm(x))) in float64, on hidden states from hooks of our own."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylens.storage.payload import decode_payload, encode_payload
from raylens.storage.positions import Positions
from raylens.storage.record import Prompt, Record
from raylens.storage.taps import TAPS
from raylens.workers import reading as reading_module
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.attribution import find_attribution
from raylens.workers.batching import pad
from raylens.workers.lens import Lens
from raylens.workers.settings import LensSettings, LogprobType
from raylens.workers.tokenize import Tokenized
from tests.models import FAMILIES, VOCABULARY, build, make, see

LENGTHS = [9, 2, 6, 1]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
    ),
]
every_device = pytest.mark.parametrize("device", DEVICES)


def rms(x: Tensor, norm: Any, shift: float = 0.0) -> Tensor:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * (norm.weight.double() + shift)


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


#: Family -> its final norm in float64.
NORMS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "llama": rms,
    "gpt2": layer_norm,
    "gpt_neox": layer_norm,
    "gptj": layer_norm,  # its head has a bias
    "gemma2": lambda x, norm: rms(x, norm, 1.0),  # and a softcap
    "granite": rms,  # and factors on writes and logits
}
every_norm = pytest.mark.parametrize("name", NORMS)


@cache
def built(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, Adapter]:
    model = build(name) if (device, dtype) == ("cpu", torch.float32) else copy.deepcopy(build(name)).to(device, dtype)
    return model, adapt(model)


def tokens(length: int, number: int = 0) -> list[int]:
    return [(place * 37 + 11 * length + number) % VOCABULARY for place in range(length)]


def prompts(positions: str = "all", lengths: list[int] = LENGTHS, tracked: tuple[int, ...] = ()) -> list[Tokenized]:
    meant = Positions.parse(positions)
    return [
        Tokenized(Prompt(n, f"p{n}", metadata={"n": n}), "", tokens(size, n), meant.among(range(size), size), None, tracked)
        for n, size in enumerate(lengths)
    ]


def run(
    model: Any, adapter: Adapter, batch: list[Tokenized], layers: tuple[int, ...] = (0, 1, 2), **settings: Any
) -> list[Record]:
    settings = {"top_k": 10, "logprobs": "float32", **settings}
    taps = tuple(tap for tap in TAPS if tap not in adapter.certificate["refused"])
    outcomes = Lens(adapter, LensSettings(**settings), layers, taps)(pad(batch, model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def reference(name: str, model: Any, prompt: Tokenized, tap: str, layer: int) -> Tensor:
    """[T, V] float64 log probabilities; see() and this share nothing with the package."""
    family = FAMILIES[name]
    blocks, _ = see(model, family, torch.tensor([prompt.ids], device=model.device))
    place = {"resid_pre": "pre", "attn_out": "attn", "resid_mid": "mid", "mlp_out": "mlp", "resid_post": "post"}[tap]
    return torch.log_softmax(logits64(name, model, getattr(blocks[layer], place)), dim=1).cpu()


@torch.no_grad()
def logits64(name: str, model: Any, hidden: Tensor) -> Tensor:
    """[T, V] float64 logits of hidden states."""
    family, head = FAMILIES[name], model.get_output_embeddings()
    normed = NORMS[name](hidden.double(), model.get_submodule(family.norm))
    return family.after(F.linear(normed, head.weight.double(), None if head.bias is None else head.bias.double()))


def compare(record: Record, tap: str, layer: int, exact: Tensor) -> None:
    """One tap and layer of a record against [P, V] float64 log probabilities."""
    found = record.taps[tap]
    at = found.layers.index(layer)
    ids = torch.from_numpy(found.ids[at].astype(np.int64))
    best, order = exact.sort(dim=1, descending=True, stable=True)
    k = ids.shape[1]
    assert float((torch.from_numpy(found.logprobs[at]).double() - best[:, :k]).abs().max()) < 1e-4
    clear = (best[:, :k] - best[:, 1 : k + 1]).min(dim=1).values > 1e-5  # closer ones may change places in float32
    assert float(clear.double().mean()) > 0.85
    assert ids[clear].equal(order[clear][:, :k])
    entropy = -(exact.exp() * exact).sum(dim=1)
    assert float((torch.from_numpy(found.entropy[at]) - entropy).abs().max()) < 1e-4


@every_device
@every_norm
def test_every_tap_against_float64(name: str, device: str) -> None:
    """Ids are equal, and logprobs and entropy equal to 1e-4, at every tap, layer and position of a padded batch."""
    model, adapter = built(name, device)
    batch = prompts()
    for prompt, record in zip(batch, run(model, adapter, batch), strict=True):
        assert (record.id, record.index, record.metadata) == (prompt.prompt.id, prompt.prompt.index, prompt.prompt.metadata)
        assert (record.token_ids, record.positions, record.layers) == (prompt.ids, prompt.positions, [0, 1, 2])
        assert set(record.taps) == set(TAPS) - set(FAMILIES[name].refused)
        for tap, found in record.taps.items():
            assert found.layers == ((0,) if tap == "resid_pre" else (0, 1, 2))
            for layer in found.layers:
                compare(record, tap, layer, reference(name, model, prompt, tap, layer))


@every_norm
def test_logsumexp_against_float64(name: str) -> None:
    """The logsumexp of the last block is that of the model's own logits, to 1e-4."""
    model, adapter = built(name)
    (prompt,) = prompts(lengths=[7])
    (record,) = run(model, adapter, [prompt])
    _, logits = see(model, FAMILIES[name], torch.tensor([prompt.ids]))
    assert np.abs(record.taps["resid_post"].logsumexp[2] - logits.double().logsumexp(dim=1).numpy()).max() < 1e-4
    top = logits.max(dim=1).values.numpy() - record.taps["resid_post"].logsumexp[2]
    assert np.abs(record.taps["resid_post"].logprobs[2, :, 0] - top).max() < 1e-4


@every_device
@every_norm
def test_padded_batch_equals_each_prompt_alone(name: str, device: str) -> None:
    """Prompts of different lengths in one batch get what each gets alone, to 1e-5 (on a GPU, which adds otherwise, 1e-4)."""
    model, adapter = built(name, device)
    batch = prompts()
    for prompt, together in zip(batch, run(model, adapter, batch), strict=True):
        (alone,) = run(model, adapter, [prompt])
        for tap, found in together.taps.items():
            for field in ("logprobs", "logsumexp", "entropy"):
                difference = np.abs(getattr(found, field) - getattr(alone.taps[tap], field)).max()
                assert difference < (1e-5 if device == "cpu" else 1e-4) * max(1.0, np.abs(found.logsumexp).max()), (tap, field)
            assert np.mean(found.ids == alone.taps[tap].ids) >= (1.0 if device == "cpu" else 0.99)


@pytest.mark.parametrize("positions", ["last", "last:2", "1:5", "-3:-1"])
def test_positions_are_rows_of_all(positions: str) -> None:
    """A choice of positions gives the same numbers as lensing all of them."""
    model, adapter = built("llama")
    batch = prompts(positions, [9, 4, 6])
    for some, whole in zip(run(model, adapter, batch), run(model, adapter, prompts("all", [9, 4, 6])), strict=True):
        assert some.positions == Positions.parse(positions).among(range(len(some.token_ids)), len(some.token_ids))
        for tap, found in some.taps.items():
            assert np.array_equal(found.ids, whole.taps[tap].ids[:, some.positions])
            np.testing.assert_allclose(found.logprobs, whole.taps[tap].logprobs[:, some.positions], atol=1e-5)


@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2)])
def test_layers_are_rows_of_all(layers: tuple[int, ...]) -> None:
    """A choice of layers gives the same numbers as lensing all of them; the embedding's tap is there all the same."""
    model, adapter = built("llama")
    (some,), (whole,) = run(model, adapter, prompts(lengths=[9]), layers), run(model, adapter, prompts(lengths=[9]))
    assert some.layers == list(layers)
    for tap, found in some.taps.items():
        chosen = [0] if tap == "resid_pre" else list(layers)
        assert found.layers == tuple(chosen)
        assert np.array_equal(found.ids, whole.taps[tap].ids[chosen])
        np.testing.assert_allclose(found.logprobs, whole.taps[tap].logprobs[chosen], atol=1e-5)


def test_embedding_tap_is_the_embedding() -> None:
    """resid_pre is what the first block reads: GPT-2's token and position embeddings, added."""
    model, adapter = built("gpt2")
    (prompt,) = prompts(lengths=[9])
    (record,) = run(model, adapter, [prompt])
    with torch.no_grad():
        hidden = model.transformer.wte.weight[prompt.ids] + model.transformer.wpe.weight[:9]
    compare(record, "resid_pre", 0, torch.log_softmax(logits64("gpt2", model, hidden), dim=1))


def test_stored_logprobs_are_the_nearest_float16() -> None:
    """By default logprobs are float16, each the nearest to its float32; ids, logsumexp and entropy stay whole."""
    model, adapter = built("llama")
    (short,), (whole,) = (run(model, adapter, prompts(lengths=[9]), logprobs=kind) for kind in ("float16", "float32"))
    for tap, found in short.taps.items():
        assert found.logprobs.dtype == np.float16
        assert np.array_equal(found.logprobs, whole.taps[tap].logprobs.astype(np.float16))
        assert found.ids.dtype == np.uint32
        assert np.array_equal(found.ids, whole.taps[tap].ids)
        assert found.logsumexp.dtype == found.entropy.dtype == np.float32


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_improbable_tokens_stay_finite(kind: LogprobType) -> None:
    """A logprob below the range of its type is stored as its lowest number, and a masked token spoils nothing."""
    model = copy.deepcopy(build("gptj"))
    with torch.no_grad():
        model.lm_head.bias[[5, 9]] = torch.tensor([-1e6, -torch.inf])
    (record,) = run(model, adapt(model), prompts(lengths=[4]), top_k=VOCABULARY, logprobs=kind)
    for found in record.taps.values():
        assert (found.ids[:, :, -2:] == [5, 9]).all()
        assert (found.logprobs[:, :, -1] == np.finfo(kind).min).all()
        np.testing.assert_allclose(found.logprobs[:, :, -2], max(-1e6, float(np.finfo(kind).min)), rtol=1e-3)
        assert np.isfinite(found.entropy).all()
    record = replace(record, tokens=["w"] * len(record.token_ids))
    assert isinstance(decode_payload(encode_payload(record), record.index, VOCABULARY), Record)  # as the writer has it


def test_reading_out_early_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows read out from within the forward pass, as large batches are, give the same records."""
    model, adapter = built("llama")
    late = run(model, adapter, prompts())
    monkeypatch.setattr(reading_module, "PENDING_BYTES", 1)
    for one, other in zip(late, run(model, adapter, prompts()), strict=True):
        for tap, found in one.taps.items():
            assert np.array_equal(found.ids, other.taps[tap].ids)
            np.testing.assert_allclose(found.logprobs, other.taps[tap].logprobs, atol=1e-5)


def test_hooks_are_gone_afterwards() -> None:
    """A run, also one that fails, leaves no hook in the model."""
    model, adapter = built("llama")
    run(model, adapter, prompts())
    bad = Tokenized(Prompt(0, "0"), "", [VOCABULARY + 5], [0], None)
    with pytest.raises(IndexError):
        run(model, adapter, [bad])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@every_norm
def test_short_model_within_its_certificate(name: str, dtype: torch.dtype, device: str) -> None:
    """In a short type the lens is float32-exact for the hidden states there are, and the model's logits within the bound."""
    model, adapter = built(name, device, dtype)
    (prompt,) = prompts(lengths=[9])
    (record,) = run(model, adapter, [prompt])
    for tap, found in record.taps.items():
        for layer in found.layers:
            exact = reference(name, model, prompt, tap, layer)
            chosen = exact.gather(1, torch.from_numpy(found.ids[found.layers.index(layer)].astype(np.int64)))
            assert np.abs(found.logprobs[found.layers.index(layer)] - chosen.numpy()).max() < 1e-4
    blocks, logits = see(model, FAMILIES[name], torch.tensor([prompt.ids], device=device))
    allowed = adapter.certificate["lens"]["allowed"]
    assert float((logits.double() - logits64(name, model, blocks[-1].post)).abs().max()) <= allowed
    assert allowed < 0.05 * float(logits.abs().max())


def test_numbers_that_are_not_finite_cost_one_prompt() -> None:
    """A prompt for which the model gives NaN is told apart, and its batch-mates are untouched by it."""
    model = copy.deepcopy(build("llama"))
    batch = prompts()
    spoiled = batch[2].ids[0]
    assert not any(spoiled in prompt.ids for prompt in (batch[0], batch[1], batch[3]))
    clean = run(model, adapt(model), batch)
    with torch.no_grad():
        model.model.embed_tokens.weight[spoiled] = torch.nan
    taps = ("attn_out", "resid_mid", "mlp_out", "resid_post")
    outcomes = Lens(adapt(model), LensSettings(10, logprobs="float32"), (0, 1, 2), taps)(pad(batch, model.device))
    assert isinstance(outcomes[2], ValueError)
    for number in (0, 1, 3):
        outcome = outcomes[number]
        assert isinstance(outcome, Record)
        for tap, found in outcome.taps.items():
            np.testing.assert_array_equal(found.logprobs, clean[number].taps[tap].logprobs)


@pytest.mark.parametrize("stat", ["kl", "best_rank", "best_attribution", "next_attribution"])
def test_a_final_prediction_that_is_not_finite_costs_one_prompt(stat: str) -> None:
    """Also where the layer that failed is not stored: what is asked about it would be no number, or of any token."""
    model = copy.deepcopy(build("llama"))
    adapter, batch = adapt(model), prompts()
    settings, attribution = LensSettings(10, logprobs="float32", stats=(stat,)), find_attribution(model, adapter)
    lens = Lens(adapter, settings, (0, 1), ("resid_post",), attribution=attribution)

    def spoil(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        output[2] = torch.nan
        return output

    model.model.layers[-1].mlp.register_forward_hook(spoil)
    outcomes = lens(pad(batch, model.device))
    assert isinstance(outcomes[2], ValueError)
    assert all(isinstance(outcomes[number], Record) for number in (0, 1, 3))


MEMORY = """
import resource, sys
import torch
from tests.models import make
from raylens.storage.record import Prompt
from raylens.workers.adapter import adapt
from raylens.workers.batching import pad
from raylens.workers.lens import Lens
from raylens.workers.settings import LensSettings
from raylens.workers.tokenize import Tokenized

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def lens(layers, length):
    model = make("llama", vocab_size=40_000, hidden_size=16, intermediate_size=16, num_hidden_layers=layers,
                 num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512)
    prompt = Tokenized(Prompt(0, "0"), "", list(range(length)), list(range(length)), None)
    taps = ("attn_out", "resid_mid", "mlp_out", "resid_post")
    return Lens(adapt(model), LensSettings(5), tuple(range(layers)), taps), pad([prompt], model.device)

large = lens(6, 256)
small, batch = lens(2, 128)
small(batch)
before = peak()
large[0](large[1])
print(peak() - before)
"""


def test_memory_does_not_grow_with_layers_or_length() -> None:
    """Six times as many rows, whose logits would fill a gigabyte, are read out in at most 64 MiB more than the fewer."""
    # glibc would keep what is freed and so hide what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[2])
    assert int(done.stdout.split()[-1]) < 64 << 20


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_gpu_memory_does_not_grow_with_layers_or_length() -> None:
    """The same on a GPU, by its allocator's own count."""
    peaks = []
    for layers, length in ((2, 128), (6, 256)):
        size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
        model = make("llama", vocab_size=40_000, num_hidden_layers=layers, max_position_embeddings=512, **size).to("cuda")
        adapter = adapt(model)
        lens = Lens(adapter, LensSettings(5), tuple(range(layers)), ("attn_out", "resid_mid", "mlp_out", "resid_post"))
        batch = pad([Tokenized(Prompt(0, "0"), "", list(range(length)), list(range(length)), None)], model.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        lens(batch)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0] + (64 << 20)


def test_reading_out_calls_the_models_own_norm() -> None:
    """Reading a tap by itself calls the model's own norm; hooks that someone put on it see those calls and are kept."""
    model, adapter = built("gpt2")
    calls: list[nn.Module] = []
    handle = model.transformer.ln_f.register_forward_hook(lambda module, _args, _output: calls.append(module))
    Lens(adapter, LensSettings(10), (0, 1, 2), ("resid_post",))(pad(prompts(lengths=[3]), model.device))
    handle.remove()
    assert len(calls) >= 2  # the model's own, and the lens's
