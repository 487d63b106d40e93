"""The usual way, well written: transformers with forward hooks, log_softmax and topk.

The forward pass leaves out the model's own head. A hook keeps a reference, not a copy: Llama-like blocks write nothing in place.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.peers.padded import Padded
from tests.benchmarks.peers.turns import serve

#: tap -> (of a block: which module, and whether what it reads is meant rather than what it gives).
SITES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "attn_out": (lambda block: block.self_attn, False),
    "resid_mid": (lambda block: block.post_attention_layernorm, True),
    "mlp_out": (lambda block: block.mlp, False),
    "resid_post": (lambda block: block, False),
}


class Hooks(Padded):
    """A Llama-like model and its tokenizer."""

    packages = ("torch", "transformers")

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(tokenizer, len(model.model.layers))
        self._model = model

    @classmethod
    def load(cls, folder: str) -> "Hooks":
        """From a folder, in float32."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder))

    def hidden(self, ids: Tensor, mask: Tensor, taps: list[str]) -> list[Tensor]:
        """See Padded."""
        kept: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        with ExitStack() as hooks:
            for tap in taps:
                find, reads = SITES[tap]
                for module in map(find, self._model.model.layers):
                    hooks.callback(_hook(module, reads, kept[tap]).remove)
            self._model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        return [value for tap in taps for value in kept[tap]]

    def logits(self, rows: Tensor) -> Tensor:
        """See Padded."""
        logits: Tensor = self._model.lm_head(self._model.model.norm(rows))
        return logits


def _hook(module: Any, reads: bool, kept: list[Tensor]) -> Any:
    def keep(value: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(value if isinstance(value, Tensor) else value[0])

    if reads:
        return module.register_forward_pre_hook(lambda _module, args: keep(args))
    return module.register_forward_hook(lambda _module, _args, output: keep(output))


if __name__ == "__main__":
    serve(Hooks.load)
