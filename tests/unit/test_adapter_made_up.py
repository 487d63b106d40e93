"""Architectures nobody listed: certified where they can be measured, refused where not, in float32 and bfloat16."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from raylens.storage.errors import ModelError
from raylens.workers.adapter import adapt
from tests.models import VOCABULARY, randomize, same

WIDTH, LAYERS = 32, 3
DTYPES = [torch.float32, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


class MadeUpConfig(PretrainedConfig):
    model_type = "made_up"
    vocab_size = VOCABULARY
    num_hidden_layers = LAYERS


class Mixing(nn.Module):
    """Stands for attention: each position gets the mean of those up to it, projected."""

    causal = True

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if not self.causal:
            return self.project(x.mean(dim=1, keepdim=True).expand_as(x))
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype).view(1, -1, 1)
        return self.project(x.cumsum(dim=1) / counts)


class Block(nn.Module):
    """A block in turn, with parts named as told; ``write`` is done to what each part gives before it is added."""

    def __init__(self, attention: str = "self_attn", mlp: str = "mlp", write: Callable[[Tensor], Tensor] = same) -> None:
        super().__init__()
        self.names = (attention, mlp)
        self.write = write
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.add_module(attention, Mixing())
        self.add_module(mlp, nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        attention, mlp = (self.get_submodule(name) for name in self.names)
        mid = hidden_states + self.write(attention(self.norm_1(hidden_states)))
        return mid + self.write(mlp(self.norm_2(mid)))


class ThreeWrites(Block):
    """A block that adds a third time, by a part with an unknown name, and nothing reads the residual in between."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.extra(self.norm_1(hidden_states))


class Silent(Block):
    """A block whose attention adds nothing."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.self_attn(self.norm_1(hidden_states))
        return hidden_states + self.mlp(self.norm_2(hidden_states))


class Body(nn.Module):
    def __init__(self, blocks: list[nn.Module], stack: str, norm: str, passes: int) -> None:
        super().__init__()
        self.names, self.passes = (stack, norm), passes
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.add_module(stack, nn.ModuleList(blocks))
        self.add_module(norm, nn.LayerNorm(WIDTH))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool, scale: float = 1.0) -> Tensor:
        stack, norm = (self.get_submodule(name) for name in self.names)
        x = self.embed(input_ids) * scale
        for _ in range(self.passes):
            for block in stack:
                x = block(x)
        return norm(x)


class MadeUp(PreTrainedModel):
    """A language model of made-up parts.

    Args:
        block: makes a block.
        stack, norm: names of the block list and the final norm.
        after: done to the logits.
        scale: done to the embeddings, by the model and not by its body.
        passes: how often the stack runs.
        share: what the blocks have in common.
    """

    config_class = MadeUpConfig
    base_model_prefix = "body"

    def __init__(
        self,
        block: Callable[[], nn.Module] = Block,
        stack: str = "layers",
        norm: str = "norm",
        after: Callable[[Tensor], Tensor] = same,
        scale: float = 1.0,
        passes: int = 1,
        share: Callable[[list[nn.Module]], list[nn.Module]] = lambda blocks: blocks,
    ) -> None:
        super().__init__(MadeUpConfig())
        self.body = Body(share([block() for _ in range(LAYERS)]), stack, norm, passes)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.after, self.scale = after, scale

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embed

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.after(self.head(self.body(input_ids, attention_mask, use_cache, self.scale))))


class WithTower(MadeUp):
    """A model whose first part is another stack, as deep and as little nested as the language model's, which text passes by."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        body = self.body
        del self.body
        self.tower = nn.Module()
        self.tower.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.body = body


class NoHead(MadeUp):
    def get_output_embeddings(self) -> None:
        return None


def made(dtype: torch.dtype = torch.float32, kind: type[MadeUp] = MadeUp, **parts: Any) -> MadeUp:
    model: MadeUp = randomize(kind(**parts).eval())
    return model.to(dtype)


@every_dtype
def test_known_names_in_an_unknown_architecture_are_certified(dtype: torch.dtype) -> None:
    """Nothing depends on the architecture's name: with parts under known names every tap is certified."""
    certificate = adapt(made(dtype)).certificate
    assert certificate["refused"] == {}
    assert certificate["architecture"] == "MadeUp"
    assert set(certificate["taps"]) == {"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"}


@every_dtype
@pytest.mark.parametrize("factor", [0.5, 0.95, 1.05, -1.0])
def test_unlisted_factor_on_the_writes_is_refused(dtype: torch.dtype, factor: float) -> None:
    """A model that scales what it writes by a factor no known field holds loses those taps and keeps the residual's."""
    adapter = adapt(made(dtype, block=lambda: Block(write=lambda x: x * factor)))
    assert set(adapter.certificate["refused"]) == {"attn_out", "resid_mid", "mlp_out"}
    assert adapter.taps(None) == ("resid_post",)


@every_dtype
def test_unlisted_third_write_is_refused(dtype: torch.dtype) -> None:
    """A block that adds something besides attention and MLP, unseen by any of its parts, keeps only the residual's taps."""
    assert set(adapt(made(dtype, block=ThreeWrites)).certificate["refused"]) >= {"attn_out", "mlp_out"}


def test_attention_that_adds_nothing_is_refused() -> None:
    """Where attention's output is computed but not added, calling it attn_out would be wrong."""
    refused = adapt(made(block=Silent)).certificate["refused"]
    assert set(refused) == {"attn_out", "resid_mid"}
    assert "only once (output of mlp)" in refused["attn_out"]


def test_unknown_part_names_are_refused() -> None:
    """Parts under names no list has cost the taps, not the lens."""
    adapter = adapt(made(block=lambda: Block("blend", "widen")))
    assert set(adapter.certificate["refused"]) == {"attn_out", "resid_mid", "mlp_out"}
    with pytest.raises(ModelError, match=r"--taps mlp_out: block 0: .*; choose from resid_pre, resid_post"):
        adapter.taps(("mlp_out",))


@every_dtype
@pytest.mark.parametrize(
    "after",
    [
        lambda logits: logits * 1.01,
        lambda logits: logits / 3,
        lambda logits: 20 * torch.tanh(logits / 20),
        lambda logits: logits + logits.sin(),
        lambda logits: logits.roll(1, dims=-1),
    ],
    ids=["factor", "divisor", "softcap", "other", "order"],
)
def test_unlisted_step_after_the_head_is_refused(dtype: torch.dtype, after: Callable[[Tensor], Tensor]) -> None:
    """A model that does something unknown to its logits is refused: its lens would not end in the model's own numbers."""
    with pytest.raises(ModelError, match="does not give the model's logits"):
        adapt(made(dtype, after=after))


def to_one_token(amount: float) -> Callable[[Tensor], Tensor]:
    """What adds to one token's logit."""

    def after(logits: Tensor) -> Tensor:
        changed = logits.clone()
        changed[..., 7] += amount
        return changed

    return after


@pytest.mark.parametrize(
    ("dtype", "after"),
    [
        (torch.float32, to_one_token(1e-3)),
        (torch.float32, to_one_token(-torch.inf)),
        (torch.bfloat16, lambda logits: logits.float() * 1.005),
        (torch.bfloat16, lambda logits: logits + 0.004 * logits.abs().max() * torch.sign(torch.sin(1e4 * logits.float()))),
    ],
    ids=["one token's logit", "one token ruled out", "factor within rounding", "noise within rounding"],
)
def test_slight_steps_after_the_head_are_refused(dtype: torch.dtype, after: Callable[[Tensor], Tensor]) -> None:
    """Also of one token alone, and in a short type where each single logit could have been rounded so."""
    with pytest.raises(ModelError, match="does not give the model's logits"):
        adapt(made(dtype, after=after))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"stack": "tower"}, "no block stack named"),
        ({"norm": "squash"}, "does not give the model's logits"),
        ({"passes": 2}, "block 0 ran 2 times"),
        ({"share": lambda blocks: [blocks[0], blocks[1], blocks[0]]}, "the same block more than once"),
        ({"kind": NoHead}, "no output embedding"),
    ],
    ids=["stack", "norm", "looped", "repeated", "headless"],
)
def test_models_that_cannot_be_read_are_refused(parts: dict[str, Any], reason: str) -> None:
    """Each thing the lens cannot do without is named where it is missing."""
    with pytest.raises(ModelError, match=reason):
        adapt(made(**parts))


def test_a_tower_as_deep_as_the_language_model_is_passed_by() -> None:
    """The stack beside the token embedding is the language model's."""
    certificate = adapt(made(kind=WithTower)).certificate
    assert certificate["refused"] == {}
    assert certificate["taps"] == adapt(made()).certificate["taps"]


@every_dtype
def test_model_that_is_not_causal_is_refused(dtype: torch.dtype) -> None:
    """Padding and later tokens would change what a prompt gives."""
    model = made(dtype)
    for module in model.modules():
        if isinstance(module, Mixing):
            module.causal = False
    with pytest.raises(ModelError, match="padded batch"):
        adapt(model)


@every_dtype
def test_model_that_sees_one_token_ahead_is_refused(dtype: torch.dtype) -> None:
    """Only the last token of a prompt, the one that is read by default, is then another than in a padded batch."""
    model = made(dtype)

    def ahead(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + 0.1 * torch.cat([output[:, 1:], torch.zeros_like(output[:, :1])], dim=1)

    model.get_input_embeddings().register_forward_hook(ahead)
    with pytest.raises(ModelError, match="padded batch"):
        adapt(model)


def test_model_that_fails_is_refused_with_its_error() -> None:
    """What the model raises on the probe prompt is in the message."""
    model = made()
    model.body.layers[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("flux")))
    with pytest.raises(ModelError, match="KeyError: 'flux'"):
        adapt(model)


def test_model_that_fails_on_a_mask_is_refused_with_its_error() -> None:
    """It reads the probe prompt alone."""
    model = made()

    def alone(_module: nn.Module, args: Any) -> None:
        if len(args[0]) > 1:
            raise ValueError("one prompt at a time")

    model.get_input_embeddings().register_forward_pre_hook(alone)
    with pytest.raises(ModelError, match=r"it fails on a padded batch \(ValueError: one prompt at a time\); only causal models"):
        adapt(model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_model_whose_logits_are_no_numbers_is_refused_for_that(value: float) -> None:
    """Not for a lens that is off by nan."""
    model = made()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = value
    with pytest.raises(ModelError, match="its own logits for a probe prompt are not finite: a weight is damaged"):
        adapt(model)


def test_a_part_that_gives_no_numbers_is_not_taken_for_the_final_norm() -> None:
    """Whether it comes before the one that is, or after."""
    model = made()
    model.body.layer_norm = nn.LayerNorm(model.head.in_features)
    with torch.no_grad():
        model.body.layer_norm.weight.fill_(torch.nan)
    assert adapt(model).certificate["lens"]["norm"] == adapt(made()).certificate["lens"]["norm"]


def test_shared_part_is_refused() -> None:
    """One attention module used by two blocks cannot be told apart by a hook."""

    def share(blocks: list[nn.Module]) -> list[nn.Module]:
        blocks[2].self_attn = blocks[0].self_attn
        return blocks

    assert set(adapt(made(share=share)).certificate["refused"]) == {"attn_out"}


def test_body_that_needs_its_model_is_not_run_alone() -> None:
    """Where the model prepares what its body reads, the whole model is run, and its hidden states are the model's."""
    assert adapt(made()).certificate["runs"]["module"] == "Body"
    model = made(scale=1.7)
    adapter = adapt(model)
    assert adapter.trunk is model
    assert adapter.certificate["runs"]["padding_error"] < 1e-6


@pytest.mark.parametrize("error", [KeyError, AssertionError, IndexError, ImportError])
def test_body_that_cannot_be_run_alone_may_fail_in_any_way(error: type[Exception]) -> None:
    """The whole model is run then."""
    model = made()
    body, whole, inside = model.body.forward, model.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        inside.append(True)
        try:
            return whole(*args, **kwargs)
        finally:
            inside.pop()

    def of_body(*args: Any, **kwargs: Any) -> Any:
        if not inside:
            raise error("made by the whole model")
        return body(*args, **kwargs)

    model.forward, model.body.forward = forward, of_body
    assert adapt(model).trunk is model
