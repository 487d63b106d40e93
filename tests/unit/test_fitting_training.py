"""Training of fitted lenses against Adam written out in float64, however few rows are compared at once; heads with biases."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from raylens.workers.adapter import adapt
from raylens.workers.fitting import divergence as divergence_module
from raylens.workers.fitting.divergence import Divergence
from raylens.workers.fitting.texts import PARTS, Texts
from tests.models import FAMILIES, see
from tests.tiny import save_word_llama
from tests.unit.test_fitting import LAYERS, Fitted, fit, settings_of
from tests.unit.test_lens import built, logits64, tokens

STEPS, RATE = 5, 0.003
PLACE = ("resid_post", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_llama(tmp_path_factory.mktemp("model"), LAYERS)


@pytest.fixture(scope="module")
def texts() -> Texts:
    """One batch, the same in each part, so that what is trained on is what is reported."""
    ids = torch.randint(0, 256, (12, 20), generator=torch.Generator().manual_seed(1)).tolist()
    return Texts(dict.fromkeys(PARTS, ids))


def fitted(model: Path, texts: Texts, steps: int) -> Fitted:
    return fit(settings_of(model, steps=steps, learning_rate=RATE, batch_tokens=1000), texts, [PLACE])


@torch.no_grad()
def hidden(model: Any, texts: Texts) -> tuple[Tensor, Tensor]:
    """[N, D] float64 of the first block's output and of the last's, without each text's first position."""
    seen: list[Tensor] = []
    hooks = [
        model.model.layers[layer].register_forward_hook(lambda _module, _args, output: seen.append(output[:, 1:].double()))
        for layer in (0, LAYERS - 1)
    ]
    model(torch.tensor(texts.parts["fit"]))
    for hook in hooks:
        hook.remove()
    return seen[0].flatten(0, 1), seen[1].flatten(0, 1)


def test_training_is_adam_with_a_rate_that_falls_to_nothing(model: Path, texts: Texts) -> None:
    """From the least squares on, in units of both sides' deviations, on the mean KL of all rows."""
    start, found = (fitted(model, texts, steps) for steps in (0, STEPS))
    assert found.reports[0].chosen == "trained"
    plain = AutoModelForCausalLM.from_pretrained(model).double().eval()
    x, y = hidden(plain, texts)
    weight0, bias0 = (torch.tensor(one).double() for one in start.maps[PLACE])
    mean, inner, outer = x.mean(0), x.std(0, correction=0), y.std(0, correction=0)
    weight, bias = torch.zeros(32, 32).double().requires_grad_(), torch.zeros(32).double().requires_grad_()
    final = torch.log_softmax(plain.lm_head(plain.model.norm(y)), -1).detach()

    def divergence() -> Tensor:
        mapped = x + x @ weight0.T + bias0 + outer * F.linear((x - mean) / inner, weight, bias)
        return (final.exp() * (final - torch.log_softmax(plain.lm_head(plain.model.norm(mapped)), -1))).sum(-1).mean()

    adam = torch.optim.Adam([weight, bias], lr=RATE)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        adam.zero_grad()
        divergence().backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        added = outer[:, None] * weight / inner
        wanted = weight0 + added
        assert found.reports[0].kl_after == pytest.approx(float(divergence()), rel=1e-4)
    moved = float(added.abs().mean())
    assert np.abs(found.maps[PLACE][0] - wanted.numpy()).mean() < 0.01 * moved


def test_rows_are_compared_in_parts(model: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where logits of seven rows fit in memory, all 228 rows count in training and report, each as much as any other."""
    whole = fitted(model, texts, STEPS)
    monkeypatch.setattr(divergence_module, "_ENTRIES", 7 * 256)
    parts = fitted(model, texts, STEPS)
    assert parts.reports[0].chosen == "trained"
    assert parts.reports[0].kl_before == pytest.approx(whole.reports[0].kl_before, rel=1e-5)
    assert parts.reports[0].kl_after == pytest.approx(whole.reports[0].kl_after, rel=1e-4)
    np.testing.assert_allclose(parts.maps[PLACE][1], whole.maps[PLACE][1], atol=1e-3)


def test_the_divergence_through_a_head_with_biases() -> None:
    """They are part of both predictions."""
    name = "gptj"
    model, adapter = built(name)
    assert model.get_output_embeddings().bias is not None
    blocks, _ = see(model, FAMILIES[name], torch.tensor([tokens(9)], device=model.device))
    rows, last = blocks[0].post.detach().float(), blocks[-1].post.detach().float()
    final, lens = (torch.log_softmax(logits64(name, model, one), -1).detach() for one in (last, rows))
    divergence = Divergence(adapter.projection)
    found = divergence(rows, divergence.logprobs(last)).detach().double().numpy()
    assert found == pytest.approx((final.exp() * (final - lens)).sum(-1).numpy(), abs=1e-5)


def test_a_token_that_is_ruled_out_adds_nothing_to_the_divergence() -> None:
    """Its probability is 0 here and at the end: the others are compared as without it, and gradients are numbers."""
    model = copy.deepcopy(built("gptj")[0])
    with torch.no_grad():
        model.lm_head.bias[3] = -torch.inf
    divergence = Divergence(adapt(model).projection)
    rows = torch.randn(4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    near = (rows + 0.1).requires_grad_()
    with torch.no_grad():
        final = divergence.logprobs(rows)
    found = divergence(near, final)
    logprobs = divergence.logprobs(near)[:, [*range(3), *range(4, final.shape[1])]]
    others = final[:, [*range(3), *range(4, final.shape[1])]]
    torch.testing.assert_close(found, F.kl_div(logprobs, others, reduction="none", log_target=True).sum(-1))
    assert (final[:, 3].exp() == 0).all()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert near.grad is not None
    assert near.grad.isfinite().all()
