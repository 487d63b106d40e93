"""Terms of logits against float64 on hidden states from hooks of our own, and against the model's own logits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raylens.storage.errors import ModelError, UsageError
from raylens.storage.record import Record
from raylens.storage.taps import TAPS
from raylens.workers import attribution as attribution_module
from raylens.workers.adapter import Adapter
from raylens.workers.attribution import find_attribution
from raylens.workers.batching import pad
from raylens.workers.lens import Lens
from raylens.workers.metrics import ATTRIBUTIONS
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings, check
from tests.models import FAMILIES, VOCABULARY, see
from tests.unit.test_lens import NORMS, built, every_device, layer_norm, prompts

TRACKED = (3, VOCABULARY - 1)
#: Families that cannot be taken apart, with words of the reason.
REFUSED = {
    "gemma4_text": "do not simply add up",
    "gemma4_text, large": "do not simply add up",
    "granitemoehybrid, experts": "was not found",
    "falcon_h1": "no one known module's output",
    "nemotron_h": "parts of different kinds",
    "minimax": "was not found",
    "openai-gpt": "was not found",
}


def records(name: str, model: Any, adapter: Adapter, layers: tuple[int, ...] = (0, 1, 2)) -> list[Record]:
    taps = tuple(tap for tap in TAPS if tap not in FAMILIES[name].refused)
    settings = LensSettings(5, stats=tuple(ATTRIBUTIONS), logprobs="float32")
    lens = Lens(adapter, settings, layers, taps, len(TRACKED), attribution=find_attribution(model, adapter))
    outcomes = lens(pad(prompts(tracked=TRACKED), model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


@torch.no_grad()
def terms64(name: str, model: Any, hidden: Tensor, final: Tensor) -> Tensor:
    """[T, V] float64 terms: what the norm makes of the final residual, entry by entry as a factor, applied to another vector."""
    norm, head = model.get_submodule(FAMILIES[name].norm), model.get_output_embeddings()
    hidden, final = hidden.double(), final.double()
    normed = NORMS[name](final, norm)
    if NORMS[name] is layer_norm:
        normed = normed - norm.bias.double()
        hidden, final = (value - value.mean(dim=-1, keepdim=True) for value in (hidden, final))
    factor = FAMILIES[name].after(torch.ones(1).double()) if name == "granite" else 1.0
    return hidden * (normed / final) @ head.weight.double().T * factor


def test_terms_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token at a time, or all: memory is bounded without another number."""
    model, adapter = built("llama")
    together = records("llama", model, adapter)
    monkeypatch.setattr(attribution_module, "_GATHERED", 1)
    for one, other in zip(records("llama", model, adapter), together, strict=True):
        for tap, lens in one.taps.items():
            for name in ATTRIBUTIONS:
                np.testing.assert_allclose(lens.stats[name], other.taps[tap].stats[name], atol=1e-5)


@every_device
@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_terms_against_float64(name: str, walk: bool, device: str) -> None:
    """Those of tracked, next and best tokens, at every tap, layer and position of a padded batch."""
    model, adapter = built(name, device)
    for record in records(name, model, adapter if walk else replace(adapter, walk=None)):
        blocks, _ = see(model, FAMILIES[name], torch.tensor([record.token_ids], device=model.device))
        place = {"resid_pre": "pre", "attn_out": "attn", "resid_mid": "mid", "mlp_out": "mlp", "resid_post": "post"}
        best = record.taps["resid_post"].ids[-1, :, 0]
        for tap, lens in record.taps.items():
            for at, layer in enumerate(lens.layers):
                exact = terms64(name, model, getattr(blocks[layer], place[tap]), blocks[-1].post).cpu().numpy()
                np.testing.assert_allclose(lens.stats["attribution"][at], exact[:, list(TRACKED)], atol=1e-4)
                for p in record.positions:
                    assert abs(lens.stats["best_attribution"][at, p] - exact[p, best[p]]) < 1e-4
                    following = lens.stats["next_attribution"][at, p]
                    if p + 1 < len(record.token_ids):
                        assert abs(following - exact[p, record.token_ids[p + 1]]) < 1e-4
                    else:
                        assert np.isnan(following)


@pytest.mark.parametrize("name", NORMS)
def test_terms_and_biases_are_the_models_logit(name: str) -> None:
    """The embedding's, all writes' and the biases' sum to the model's own logit, and the stored error says how far off."""
    model, adapter = built(name)
    head, norm = model.get_output_embeddings(), model.get_submodule(FAMILIES[name].norm)
    for record in records(name, model, adapter):
        _, logits = see(model, FAMILIES[name], torch.tensor([record.token_ids]))
        whole = sum(record.taps[tap].stats["attribution"].sum(axis=0) for tap in ("resid_pre", "attn_out", "mlp_out"))
        constant = torch.zeros(VOCABULARY) if getattr(norm, "bias", None) is None else head.weight @ norm.bias
        constant = constant if head.bias is None else constant + head.bias
        own = logits.detach()[:, list(TRACKED)]
        if name == "gemma2":  # the terms are of the logit before its cap
            own = 3.0 * torch.atanh(own / 3.0)
        np.testing.assert_allclose(whole + constant.detach().numpy()[list(TRACKED)], own.numpy(), atol=2e-4)
        for tap, lens in record.taps.items():
            error = lens.stats["attribution_error"]
            assert (error < 1e-4).all() if tap in ("resid_mid", "resid_post") else np.isnan(error).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_taken_apart_or_refused(name: str) -> None:
    """Each with its sum tried against its own logits, or with the reason why it cannot be."""
    model, adapter = built(name)
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            find_attribution(model, adapter)
        return
    found = find_attribution(model, adapter)
    assert found.certificate["error"] <= found.certificate["allowed"] < 4e-4
    assert len(found.writes) == found.certificate["writes"]


def test_a_write_that_is_not_counted_is_refused() -> None:
    """Where a sum holds in each block but what the norm reads is another, the terms are not the logit's."""
    model, adapter = built("llama")
    without = replace(adapter, sites=[*adapter.sites[:1], *adapter.sites[2:]])
    with pytest.raises(ModelError, match="the terms sum to a logit that is off by"):
        find_attribution(model, without)


def test_the_error_of_a_short_type_is_told() -> None:
    """In bfloat16 the residual is rounded at every write; what that comes to in the logit is stored, not hidden."""
    model, adapter = built("llama", dtype=torch.bfloat16)
    for record in records("llama", model, adapter):
        stored = record.taps["resid_post"].stats
        parts = [record.taps[tap].stats["attribution"].sum(axis=0) for tap in ("resid_pre", "attn_out", "mlp_out")]
        gap = np.abs(sum(parts) - stored["attribution"][-1]).max(axis=1)
        assert (gap <= stored["attribution_error"][-1] + 1e-4).all(), "next and best tokens are among those it is the largest of"
        assert 1e-4 < stored["attribution_error"][-1].max() < 0.5


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_the_error_at_each_layer(name: str) -> None:
    """At every residual it is how far the writes up to there are from it: the largest of the tracked, next and best tokens'."""
    model, adapter = built(name, dtype=torch.bfloat16)
    for record in records(name, model, adapter):
        taps, last = record.taps, len(record.token_ids) - 1  # after which there is no next token
        terms = {
            tap: np.concatenate([taps[tap].stats[one].reshape(*taps[tap].ids.shape[:2], -1) for one in ATTRIBUTIONS], axis=2)
            for tap in taps
        }
        so_far = terms["resid_pre"][0]
        for layer in range(3):
            for write, residual in (("attn_out", "resid_mid"), ("mlp_out", "resid_post")):
                so_far = so_far + terms[write][layer]
                error = taps[residual].stats["attribution_error"][layer, :last]
                gap = np.abs(so_far - terms[residual][layer]).max(axis=1)[:last]
                if (residual, layer) != ("resid_post", 2):  # there it is of the model's own logit
                    np.testing.assert_allclose(error, gap, rtol=0.01, atol=5e-5)
        assert last == 0 or taps["resid_post"].stats["attribution_error"][1, :last].max() > 1e-3


def test_the_error_is_of_the_models_own_logit() -> None:
    """Where the parts of the norm are not the model's, the error at the end says so, though the writes add up."""
    model, adapter = built("llama")
    found = find_attribution(model, adapter)
    wrong = replace(found, norm=replace(found.norm, gain=1.1 * found.norm.gain))
    settings = LensSettings(5, stats=("best_attribution",), logprobs="float32")
    for record in Lens(adapter, settings, (2,), ("resid_post",), attribution=wrong)(pad(prompts(), model.device)):
        assert isinstance(record, Record)
        assert (record.taps["resid_post"].stats["attribution_error"] > 1e-2).all()


def test_layers_that_are_not_lensed_count_too() -> None:
    """Terms of the chosen layers are those of a run of all, and the sum is still checked with all writes."""
    model, adapter = built("llama")
    for some, every in zip(records("llama", model, adapter, (2,)), records("llama", model, adapter), strict=True):
        for tap in ("attn_out", "mlp_out", "resid_post"):
            for name in (*ATTRIBUTIONS, "attribution_error"):
                np.testing.assert_allclose(some.taps[tap].stats[name][0], every.taps[tap].stats[name][2], atol=2e-5)


@pytest.mark.parametrize(
    ("lens", "words"),
    [
        (LensSettings(stats=("attribution",)), "give --track too"),
        (LensSettings(stats=("best_attribution",), taps=("attn_out",)), "add resid_post to --taps"),
        (LensSettings(stats=("next_attribution",), lens="tuned:x"), "works only with the logit lens"),
    ],
)
def test_settings_that_cannot_be(lens: LensSettings, words: str) -> None:
    """Each is refused with its remedy, before anything is loaded."""
    with pytest.raises(UsageError, match=words):
        check(WorkerSettings(ModelSettings("nowhere"), lens))


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    """Rows of a quantised head are not at hand."""
    model, adapter = built("llama")
    projection = adapter.projection
    quantised = type(projection)(projection.norm, torch.nn.Sequential(projection.head), projection.step)
    with pytest.raises(ModelError, match="the head is no plain linear layer but Sequential"):
        find_attribution(model, replace(adapter, projection=quantised))
