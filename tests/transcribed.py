"""Two models' forward passes written out in float64, from the papers and transformers' sources, with a place to edit each tap.

They share nothing with the package, and use of the model's modules only the weights. T tokens, D width, H heads.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: (tap, layer, [T, D] what the tap holds) -> what it is to hold.
Edit = Callable[[str, int, Tensor], Tensor]
#: (tap, layer) -> [T, D] what the tap holds after its edit.
Taps = dict[tuple[str, int], Tensor]


def unedited(_tap: str, _layer: int, value: Tensor) -> Tensor:
    return value


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of [H, T, d] each, as [T, H * d]."""
    tokens = queries.shape[1]
    scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[2])
    ahead = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return (scores.masked_fill(ahead, -torch.inf).softmax(dim=2) @ values).transpose(0, 1).reshape(tokens, -1)


def _rms(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()


def _rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary positions (Su et al. 2021) in the halves' layout, of [H, T, d]."""
    half = x.shape[2] // 2
    angles = torch.arange(x.shape[1]).double()[:, None] / theta ** (torch.arange(half).double() / half)
    one, other = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], dim=2)


@torch.no_grad()
def llama(model: Any, ids: list[int], edit: Edit = unedited) -> Taps:
    """Every tap of a Llama for one prompt."""
    config, found = model.config, {}
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    x = model.model.embed_tokens.weight.double()[ids]
    for layer, block in enumerate(model.model.layers):
        x = found["resid_pre", layer] = edit("resid_pre", layer, x)
        normed, attention = _rms(x, block.input_layernorm), block.self_attn
        queries, keys, values = (
            (normed @ linear.weight.double().T).view(len(ids), -1, size).transpose(0, 1)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        theta = config.rope_parameters["rope_theta"]
        queries, keys = _rotated(queries, theta), _rotated(keys, theta)
        keys, values = (one.repeat_interleave(heads // groups, dim=0) for one in (keys, values))
        written = _attend(queries, keys, values) @ attention.o_proj.weight.double().T
        written = found["attn_out", layer] = edit("attn_out", layer, written)
        x = found["resid_mid", layer] = edit("resid_mid", layer, x + written)
        normed, mlp = _rms(x, block.post_attention_layernorm), block.mlp
        gate, up = (normed @ linear.weight.double().T for linear in (mlp.gate_proj, mlp.up_proj))
        written = found["mlp_out", layer] = edit("mlp_out", layer, (F.silu(gate) * up) @ mlp.down_proj.weight.double().T)
        x = found["resid_post", layer] = edit("resid_post", layer, x + written)
    return found


def _linear(x: Tensor, conv: Any) -> Tensor:
    return x @ conv.weight.double() + conv.bias.double()


def _layer_norm(x: Tensor, norm: Any) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


@torch.no_grad()
def gpt2(model: Any, ids: list[int], edit: Edit = unedited) -> Taps:
    """Every tap of a GPT-2 for one prompt."""
    heads, found = model.config.n_head, {}
    x = model.transformer.wte.weight.double()[ids] + model.transformer.wpe.weight.double()[: len(ids)]
    for layer, block in enumerate(model.transformer.h):
        x = found["resid_pre", layer] = edit("resid_pre", layer, x)
        parts = _linear(_layer_norm(x, block.ln_1), block.attn.c_attn).chunk(3, dim=1)
        queries, keys, values = (part.view(len(ids), heads, -1).transpose(0, 1) for part in parts)
        written = _linear(_attend(queries, keys, values), block.attn.c_proj)
        written = found["attn_out", layer] = edit("attn_out", layer, written)
        x = found["resid_mid", layer] = edit("resid_mid", layer, x + written)
        inner = F.gelu(_linear(_layer_norm(x, block.ln_2), block.mlp.c_fc), approximate="tanh")
        written = found["mlp_out", layer] = edit("mlp_out", layer, _linear(inner, block.mlp.c_proj))
        x = found["resid_post", layer] = edit("resid_post", layer, x + written)
    return found


FORWARD = {"llama": llama, "gpt2": gpt2}
