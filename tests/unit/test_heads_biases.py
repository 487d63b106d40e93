"""Heads before a norm that has biases of its own, as a post-norm of LayerNorm has: they are no head's, and are counted."""

import torch
from torch import nn

from raylens.workers.adapter import adapt
from raylens.workers.heads import find_heads
from tests.models import FAMILIES, make, see
from tests.unit.test_lens import tokens


def test_a_norm_with_biases_behind_the_heads() -> None:
    """The heads are found, and with what is no head's they sum to what the norm gives, in float64."""
    settings = dict(FAMILIES["olmo2"].config)
    model = make(settings.pop("model_type", "olmo2"), **settings)
    generator = torch.Generator().manual_seed(3)
    for block in model.model.layers:
        block.post_attention_layernorm = nn.LayerNorm(32)
        for parameter in block.post_attention_layernorm.parameters():
            parameter.data.copy_(1 + torch.randn(32, generator=generator))
    (heads,) = find_heads(model, adapt(model), (1,)).values()
    read: list[torch.Tensor] = []
    attention = model.model.layers[1].self_attn.o_proj
    hook = attention.register_forward_pre_hook(lambda _module, args: read.append(args[0].detach()[0]))
    blocks, _ = see(model, FAMILIES["olmo2"], torch.tensor([tokens(9)]))
    hook.remove()
    norm = model.model.layers[1].post_attention_layernorm
    with torch.inference_mode():
        written = [rows.double() for _, rows in heads.writes(read[0])]
        rest = heads.biases(read[0]).double()
        whole = nn.functional.layer_norm(attention(read[0]).double(), (32,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert len(written) == heads.count == 4
    assert (rest - norm.bias.double()).abs().max() < 1e-5  # the projection has none
    torch.testing.assert_close(sum(written) + rest, whole, atol=1e-4, rtol=1e-4)
    assert blocks[1].attn is not None
    torch.testing.assert_close(blocks[1].attn.double(), whole, atol=1e-4, rtol=1e-4)
