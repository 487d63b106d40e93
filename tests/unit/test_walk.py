"""Walking along the residual: the same numbers as reading each tap by itself, only where sums hold, only where it saves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raylens.storage.record import Record
from raylens.storage.taps import TAPS
from raylens.workers import certify_walk
from raylens.workers import reading as reading_module
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.after_head import AfterHead
from raylens.workers.batching import pad
from raylens.workers.lens import Lens
from raylens.workers.linear import find_linear_norm
from raylens.workers.plan import plan_walk
from raylens.workers.projection import Projection
from raylens.workers.readers import WalkReader
from raylens.workers.running import MOST_KEPT
from raylens.workers.settings import LensSettings
from raylens.workers.walk import Walk
from tests.models import VOCABULARY, build
from tests.unit.test_lens import built, prompts

FOUR = ("attn_out", "resid_mid", "mlp_out", "resid_post")
#: RMSNorm; LayerNorm with biases; in turn; in parallel; norm of 1 + w and softcap; factors on writes and logits; biased head.
WALKED = ["llama", "gpt2", "gpt_neox, in turn", "gpt_neox", "gemma2", "granite", "gptj", "opt"]


def lens(adapter: Adapter, taps: tuple[str, ...] | None = None, layers: tuple[int, ...] = (0, 1, 2), k: int = 10) -> Lens:
    taps = taps or tuple(tap for tap in TAPS if tap not in adapter.certificate["refused"])
    return Lens(adapter, LensSettings(k, logprobs="float32"), layers, taps)


def records(model: Any, reader: Lens) -> list[Record]:
    outcomes = reader(pad(prompts(), model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def same(found: list[Record], expected: list[Record]) -> None:
    """Numbers to 2e-5, and ids but for neighbours closer than that."""
    for one, other in zip(found, expected, strict=True):
        assert set(one.taps) == set(other.taps)
        for tap, wanted in other.taps.items():
            for field in ("logprobs", "logsumexp", "entropy"):
                np.testing.assert_allclose(getattr(one.taps[tap], field), getattr(wanted, field), atol=2e-5)
            differ = one.taps[tap].ids != wanted.ids
            gaps = np.abs(np.diff(wanted.logprobs, axis=2))
            near = np.minimum(np.pad(gaps, ((0, 0), (0, 0), (1, 0)), constant_values=9), np.pad(gaps, ((0, 0), (0, 0), (0, 1))))
            assert (near[differ] < 4e-5).all()


@pytest.mark.parametrize("name", WALKED)
def test_walk_equals_reading_each_tap(name: str) -> None:
    """For every kind of norm, block, head and step after it; test_lens.py holds the same walks against float64."""
    model, adapter = built(name)
    walking, direct = lens(adapter), lens(replace(adapter, walk=None))
    assert "sums of what is added" in walking.path
    assert direct.path.startswith("float32 product by vocabulary block")
    assert adapter.walk is not None
    assert adapter.walk.error < 2e-4
    same(records(model, walking), records(model, direct))


@pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 2)])
@pytest.mark.parametrize("taps", [FOUR, ("resid_pre", *FOUR), ("attn_out", "resid_mid", "resid_post")])
def test_some_layers_and_taps(layers: tuple[int, ...], taps: tuple[str, ...]) -> None:
    """Walks that start inside the model, or have gaps, or leave taps out, give the same."""
    model, adapter = built("llama")
    same(records(model, lens(adapter, taps, layers)), records(model, lens(replace(adapter, walk=None), taps, layers)))


@pytest.mark.parametrize(
    ("taps", "layers", "products"),
    [
        (FOUR, range(30), 61),
        (("resid_pre", *FOUR), range(30), 61),
        (("resid_pre", *FOUR), range(1, 30), 60),
        (FOUR, [5], 3),
        (FOUR, range(0, 30, 4), 3 * 8),
        (("attn_out", "resid_mid", "resid_post"), [3, 4], 5),
        (("attn_out", "resid_mid", "resid_post"), [3], None),
        (("attn_out", "mlp_out"), range(30), None),
        (("resid_mid", "resid_post"), range(30), None),
        (("resid_post",), range(30), None),
        (("resid_pre",), range(30), None),
    ],
)
def test_walks_only_where_it_saves_products(taps: tuple[str, ...], layers: Any, products: int | None) -> None:
    """The number of products of the chosen way is never more than of reading each place, which None stands for."""
    site: Any = object()
    sites = [dict.fromkeys(FOUR, site) for _ in range(30)]
    sites[0]["resid_pre"] = site
    sums = {"resid_pre + attn_out = resid_mid": 0.0, "resid_mid + mlp_out = resid_post": 0.0}
    places = [(tap, layer) for tap in taps for layer in ([0] if tap == "resid_pre" else layers)]
    plan = plan_walk(sites, sums, places)
    assert (plan and plan.products) == products
    assert plan_walk(sites, {"resid_mid + mlp_out = resid_post": 0.0}, places) is None


def test_not_where_sums_are_not_exact() -> None:
    """A model in a short type, one without known sums, and one whose first tokens are too many are read tap by tap."""
    assert built("llama", "cpu", torch.bfloat16)[1].walk is None
    assert built("mamba")[1].walk is None
    assert lens(built("llama")[1], k=MOST_KEPT + 1).path.startswith("float32 product by vocabulary block")
    assert VOCABULARY > MOST_KEPT


def test_not_where_they_are_further_from_float64_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose sums were measured to be off by more has no walk."""
    assert adapt(build("llama")).walk is not None
    monkeypatch.setattr(certify_walk, "ALLOWED", 0.0)
    assert adapt(build("llama")).walk is None


@pytest.mark.parametrize("step", [AfterHead(0.5), AfterHead(2.0, 3.0)], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_a_factor_is_of_the_constant_part_too(name: str, step: AfterHead) -> None:
    """Where norm or head have a bias and the logits are scaled, sums give what reading each tap gives."""
    model, adapter = built(name)
    found = adapter.projection
    assert adapter.walk is not None
    projection = Projection(found.norm, found.head, step)
    assert projection.unembedding is not None
    with torch.inference_mode():
        walk = Walk(adapter.walk.norm, projection.unembedding, step, adapter.walk.error)
    scaled = replace(adapter, projection=projection, walk=walk)
    same(records(model, lens(scaled)), records(model, lens(replace(scaled, walk=None))))


@pytest.mark.parametrize("amount", [1e-3, 0.1, 1e3])
def test_sum_that_does_not_hold_is_noticed(amount: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model does at run time what it did not on the probe, residuals are read as stored, not as the wrong sum."""
    model, adapter = built("llama")
    started: list[Any] = []
    begin = WalkReader._begin

    def counted(self: WalkReader, residual: Tensor, wanted: Any) -> None:
        started.append(wanted)
        begin(self, residual, wanted)

    monkeypatch.setattr(WalkReader, "_begin", counted)
    forward = model.model.layers[1].forward
    monkeypatch.setattr(model.model.layers[1], "forward", lambda *args, **kwargs: forward(*args, **kwargs) + amount)
    found, expected = records(model, lens(adapter)), records(model, lens(replace(adapter, walk=None)))
    assert started == [("resid_pre", 0), ("resid_post", 1)]
    same(found, expected)


@pytest.mark.parametrize(
    "added",
    [
        {"0.mlp": 1e5, "1.self_attn": -1e5},
        {"1.self_attn": 1e5, "1.mlp": -1e5},
        {"0.self_attn": 1e6, "0.mlp": -9e5, "1.self_attn": -9e4, "1.mlp": -9e3, "2.self_attn": -9e2, "2.mlp": -9e1},
    ],
    ids=["later", "at once", "step by step"],
)
def test_massive_activations_leave_no_rounding_behind(added: dict[str, float]) -> None:
    """What one module adds, a hundred thousand times the rest, and later ones take away, as real models do."""
    model, adapter = built("llama")
    massive = torch.zeros(model.config.hidden_size)
    massive[3] = 1.0

    def add(amount: Tensor) -> Any:
        return lambda _module, _args, out: (out[0] + amount, *out[1:]) if isinstance(out, tuple) else out + amount

    hooks = [
        model.model.layers.get_submodule(module).register_forward_hook(add(amount * massive)) for module, amount in added.items()
    ]
    try:
        same(records(model, lens(adapter)), records(model, lens(replace(adapter, walk=None))))
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("budget", [1, 3000, 20000])
def test_segments_change_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early the budget cuts the sum into segments, in turn or in parallel, the numbers are the same."""
    for name in ("llama", "gpt_neox"):
        model, adapter = built(name)
        whole = records(model, lens(adapter))
        with monkeypatch.context() as patch:
            patch.setattr(reading_module, "PENDING_BYTES", budget)
            same(records(model, lens(adapter)), whole)


class _Norm(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, rows: Tensor) -> Tensor:
        return self.function(rows)  # type: ignore[no-any-return]


def test_norms_are_told_by_measuring() -> None:
    """Gain, bias, epsilon and centring are found by calling a norm; one that is not of the form is left alone."""
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(40, 64, generator=generator) + 0.3) * torch.logspace(-3, 3, 40).unsqueeze(1)
    rows[7] = 0  # as where a model pads, whose embedding of that token is nothing
    layer, rms = nn.LayerNorm(64, eps=3e-5), nn.RMSNorm(64, eps=1e-6)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *rms.parameters()):
            parameter.copy_(torch.randn(64, generator=generator))
    for norm, centred, eps in ((layer, True, 3e-5), (rms, False, 1e-6)):
        found = find_linear_norm(norm, rows)
        assert found is not None
        assert found.centred == centred
        assert found.eps == pytest.approx(eps, rel=1e-3)
        torch.testing.assert_close(found.gain, norm.weight.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found(rows), norm(rows).detach(), rtol=1e-5, atol=1e-5)
    for other in (
        torch.tanh,
        lambda x: rms(x).clamp(max=1.0),
        lambda x: rms(x) * x.abs().amax(dim=-1, keepdim=True),
        lambda x: x,
    ):
        assert find_linear_norm(_Norm(other), rows) is None
    assert find_linear_norm(nn.LayerNorm(63), rows[:, :63]) is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_told_apart(bad: float) -> None:
    """A prompt with NaN or infinity fails alone, and changes nothing about how its batch-mates are read."""
    model, adapter = built("llama")
    clean = records(model, lens(adapter, FOUR))
    token = prompts()[2].ids[0]
    weight = model.model.embed_tokens.weight
    kept = weight[token].detach().clone()
    try:
        with torch.no_grad():
            weight[token] = bad
        outcomes = lens(adapter, FOUR)(pad(prompts(), model.device))
    finally:
        with torch.no_grad():
            weight[token] = kept
    assert isinstance(outcomes[2], ValueError)
    for number in (0, 1, 3):
        outcome = outcomes[number]
        assert isinstance(outcome, Record)
        for tap, read in outcome.taps.items():
            np.testing.assert_array_equal(read.logprobs, clean[number].taps[tap].logprobs)
