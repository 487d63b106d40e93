"""Finding the parts of a model by the names its authors use; which of them is right is then measured (adapter.py)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError

_STACK_NAMES = ("layers", "h", "blocks", "block")
_NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "layer_norm", "final_norm")

#: Modules whose output may be what attention adds to the residual, the likelier first.
ATTENTION_NAMES = (
    "post_attention_layernorm",
    "post_self_attn_layernorm",
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "self_attention.dense",
    "temporal_block",
)
#: Modules whose output may be what the MLP adds to the residual, the likelier first.
MLP_NAMES = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "mlp",
    "ffn",
    "feed_forward",
    "block_sparse_moe",
    "mlp.dense_4h_to_h",
    "ffn.down_proj",
    "mlp_block",
    "fc2",
)
#: Configuration fields that scale each write to the residual (Granite, MiniCPM).
WRITE_SCALES = ("residual_multiplier", "residual_scale")


def find_stack(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that owns the block stack, and the stack.

    Raises:
        ModelError: no list of blocks under a known name.
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
    name, stack = min(stacks, key=lambda found: found[0].count("."))
    return model.get_submodule(name.rpartition(".")[0]), stack


def final_norms(owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules beside the stack that may be the final norm."""
    for name, child in owner.named_children():
        if name in _NORM_NAMES:
            yield name, child


def submodules(block: nn.Module, names: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """Those of the named modules that the block has."""
    found = dict(block.named_modules())
    return [(name, found[name]) for name in names if name in found]


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


def tolerance(dtype: torch.dtype) -> float:
    """Relative error allowed to a sum of residual writes: 1e-5 in float32, a few roundings in shorter types."""
    return max(1e-5, 2 * torch.finfo(dtype).eps)
