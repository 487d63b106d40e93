"""The plain float64 logit lens that records are compared with; shares nothing with raylens but the record's type.

A Llama-shaped model is run on one prompt alone, hidden states are kept by hooks of its own, and each goes through
softmax(unembed(norm(x))) in float64.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raylens.storage.record import Record


@torch.inference_mode()
def hidden_states(model: Any, ids: list[int]) -> dict[str, list[Tensor]]:
    """[T, D] of every layer at each of the four taps, as the model computes them in its own precision."""
    layers = model.model.layers
    found: dict[str, list[Tensor]] = {tap: [] for tap in ("attn_out", "resid_mid", "mlp_out", "resid_post")}
    hooks = []
    for layer in layers:
        hooks.append(layer.self_attn.register_forward_hook(lambda _m, _a, out: found["attn_out"].append(out[0][0].clone())))
        hooks.append(
            layer.post_attention_layernorm.register_forward_pre_hook(lambda _m, a: found["resid_mid"].append(a[0][0].clone()))
        )
        hooks.append(layer.mlp.register_forward_hook(lambda _m, _a, out: found["mlp_out"].append(out[0].clone())))
        hooks.append(
            layer.register_forward_hook(
                lambda _m, _a, out: found["resid_post"].append((out if isinstance(out, Tensor) else out[0])[0].clone())
            )
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as an actor with one core does
    try:
        model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))
    finally:
        torch.set_num_threads(threads)
        for hook in hooks:
            hook.remove()
    return found


def logprobs(model: Any, hidden: Tensor) -> Tensor:
    """[N, V] float64 log_softmax of the RMS-normed, unembedded rows."""
    x = hidden.double()
    norm = model.model.norm
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight.double()
    return torch.log_softmax(x @ double_head(model).T, dim=-1)


_HEADS: dict[int, Tensor] = {}


def double_head(model: Any) -> Tensor:
    """[V, D] float64 unembedding, made once a model."""
    if id(model) not in _HEADS:
        _HEADS[id(model)] = model.lm_head.weight.detach().double()
    return _HEADS[id(model)]


@torch.inference_mode()
def assert_record_is_exact(record: Record, model: Any, tolerance: float, compared: slice = slice(None)) -> None:
    """Every id, logprob and entropy of a record that was run alone, of the compared ones of its layers, against the float64
    reference.

    The hidden states are the model's own float32 ones: between batch shapes and thread counts they differ by more than
    the lens may (3e-4 in a logprob of SmolLM2), so a record of a padded batch is no subject for this. Ids must be the
    reference's best in order, but neighbours closer than twice the tolerance may swap.
    """
    states = hidden_states(model, record.token_ids)
    for tap, lens in record.taps.items():
        place = (record.id, tap)
        hidden = torch.stack([states[tap][layer][record.positions] for layer in lens.layers[compared]])
        reference = logprobs(model, hidden.flatten(0, 1))
        k = lens.ids.shape[2]
        ids = torch.from_numpy(lens.ids[compared].astype(np.int64)).flatten(0, 1)
        stored = torch.from_numpy(lens.logprobs[compared].astype(np.float64)).flatten(0, 1)
        there, best = reference.gather(1, ids), reference.topk(k).values
        # float16 keeps 11 bits of a logprob
        rounding = there.abs() * 2.0**-11 if lens.logprobs.dtype == np.float16 else torch.zeros_like(there)
        assert ((stored - there).abs() <= tolerance + rounding).all(), (place, float((stored - there).abs().max()))
        assert ((there - best).abs() <= 2 * tolerance).all(), place
        assert all(len(set(row)) == k for row in ids.tolist()), place
        entropy = -(reference.exp() * reference).sum(-1)
        found = torch.from_numpy(lens.entropy[compared]).double().flatten()
        assert ((found - entropy).abs() <= 10 * tolerance).all(), place
