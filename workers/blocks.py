"""Finding the parts of a model by the names its authors use; which of them is right is then measured (sums.py, calibrate.py)."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError

_STACK_NAMES = ("layers", "h", "blocks", "block")
_NORM_NAMES = (
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "norm_f",
    "layer_norm",
    "final_norm",
    "layernorm",
    "ln_out",
    "out_norm",
    "embedding_norm",  # LFM2 calls its final norm so
)

#: Modules whose output may be what attention, or the recurrent mixer in its place, adds to the residual; the likelier first.
ATTENTION_NAMES = (
    "post_attention_layernorm",
    "post_self_attn_layernorm",
    "post_operator_norm",
    "post_norm1",
    "attn_sconv",
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "self_attention.dense",
    "multi_head_attention",
    "linear_attn",
    "temporal_block",
    "mamba",
    "conv",
    "mixer",
)
#: Modules whose output may be what the MLP adds to the residual, the likelier first.
MLP_NAMES = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "post_ffn_norm",
    "post_norm2",
    "mlp_sconv",
    "mlp",
    "ffn",
    "feed_forward",
    "block_sparse_moe",
    "shared_mlp",
    "mlp.dense_4h_to_h",
    "ffn.down_proj",
    "mlp_block",
    "fc2",
)
#: Fields of the configuration or of a block that scale each write to the residual (Granite, MiniCPM).
WRITE_SCALES = ("residual_multiplier", "residual_scale")
#: Fields of a block that scale the whole residual at its end (Gemma-4).
BLOCK_SCALES = ("layer_scalar",)


def find_stack(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The module that owns the block stack, and the stack.

    Of several lists, such as those of a vision tower beside the language model, the one as long as the configuration says
    is taken, then one beside the token embedding, then the least nested.

    Raises:
        ModelError: no list of blocks under a known name, or one block that stands in it twice.
    """
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _STACK_NAMES and len(module) > 0
    ]
    if not stacks:
        raise ModelError(
            f"{type(model).__name__}: no block stack named {', '.join(_STACK_NAMES)}; raylens cannot read this architecture"
        )
    depth, embedding = getattr(model.config.get_text_config(), "num_hidden_layers", None), model.get_input_embeddings()

    def unlikely(found: tuple[str, nn.ModuleList]) -> tuple[bool, bool, int]:
        name, blocks = found
        beside = any(module is embedding for module in model.get_submodule(name.rpartition(".")[0]).modules())
        return len(blocks) != depth, not beside, name.count(".")

    name, stack = min(stacks, key=unlikely)
    if len({id(block) for block in stack}) != len(stack):
        raise ModelError(f"{type(model).__name__}: {name} holds the same block more than once, so a hook cannot tell its layers")
    return model.get_submodule(name.rpartition(".")[0]), stack


def final_norms(owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules beside the stack that may be the final norm; last, that there is none (post-norm blocks such as GPT-1's)."""
    for name, child in owner.named_children():
        if name in _NORM_NAMES:
            yield name, child
    yield "none", nn.Identity()


def submodules(block: nn.Module, names: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """Those of the named modules that the block has."""
    found = dict(block.named_modules())
    return [(name, found[name]) for name in names if name in found]


def numbers(holders: tuple[object, ...], names: tuple[str, ...]) -> list[float]:
    """The finite numbers, other than 0 and 1, that the holders keep under the names: plain or as one-element tensors."""
    found = []
    for value in (getattr(holder, name, None) for holder in holders for name in names):
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
            value = value.item()
        if isinstance(value, int | float) and value not in (0, 1) and math.isfinite(value):
            found.append(float(value))
    return list(dict.fromkeys(found))


def first_tensor(value: object) -> Tensor | None:
    """The hidden state in what a module takes or gives: the tensor itself, or the first of a tuple."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value:
        return first_tensor(value[0])
    return None


def input_tensor(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor | None:
    """The hidden state among a module's arguments."""
    return first_tensor(args) if args else first_tensor(kwargs.get("hidden_states"))


def flat_rows(hidden: Tensor) -> Tensor:
    """[B, T, D] or [B*T, D] as [B*T, D]."""
    return hidden.reshape(-1, hidden.shape[-1])


def output_embedding(model: nn.Module) -> nn.Module:
    """The unembedding.

    Raises:
        ModelError: the model has none, so it is no language model.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        raise ModelError(f"{type(model).__name__} has no output embedding; load a causal language model")
    return head


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module computes, also when accelerate keeps its weights elsewhere; the default if it has no weights."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next((parameter.device for parameter in module.parameters()), default)


def dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """In what type a module computes; the default if it has no weight of a floating type, as when it is quantised."""
    weight = getattr(module, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else default


def input_device(model: Any) -> torch.device:
    """Where token ids go; under a device map the model's own device may be no more than a place for offloaded weights."""
    device: torch.device = model.device
    return device_of(model.get_input_embeddings(), device)
