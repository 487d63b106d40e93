"""The usual way, well written: transformers with hooks, padded batches, all rows of a batch stacked, log_softmax and topk.

Right padding with a mask gives each prompt what it gives alone; the head reads real positions only, in chunks that stay in
memory at once, and the forward pass leaves out the model's own head.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.peers.turns import K, Tops, serve

#: Prompts of a forward pass, and rows read out at once: CHUNK x V float32 logits.
BATCH, CHUNK = 8, 256

#: tap -> (of a block: which module, and whether what it reads is meant rather than what it gives).
SITES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "attn_out": (lambda block: block.self_attn, False),
    "resid_mid": (lambda block: block.post_attention_layernorm, True),
    "mlp_out": (lambda block: block.mlp, False),
    "resid_post": (lambda block: block, False),
}


class Hooks:
    """A Llama-like model and its tokenizer, in float32."""

    packages = ("torch", "transformers")

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    @classmethod
    def load(cls, folder: str) -> "Hooks":
        """From a folder."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder))

    @torch.inference_mode()
    def lens(self, texts: list[str], taps: list[str]) -> list[list[tuple[Tensor, Tensor]]]:
        """Of each batch, chunks of (logprobs, ids), [rows, K] each; rows are places, taps x layers, times tokens."""
        return [list(self._batch(texts[first : first + BATCH], taps)) for first in range(0, len(texts), BATCH)]

    def _batch(self, texts: list[str], taps: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        chosen = batch.attention_mask.flatten().nonzero().squeeze(1)
        kept: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        with self._hooked(kept, chosen):
            self.model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        rows = torch.stack([row for tap in taps for row in kept[tap]]).flatten(0, 1)
        for chunk in rows.split(CHUNK):
            logits = self.model.lm_head(self.model.model.norm(chunk))
            yield tuple(torch.log_softmax(logits, dim=1).topk(K, dim=1))

    @contextmanager
    def _hooked(self, kept: dict[str, list[Tensor]], chosen: Tensor) -> Iterator[None]:
        def keep(tap: str, value: Tensor | tuple[Tensor, ...]) -> None:
            hidden = value if isinstance(value, Tensor) else value[0]
            kept[tap].append(hidden.flatten(0, 1)[chosen])

        def before(tap: str) -> Callable[[Any, Any], None]:
            return lambda _module, args: keep(tap, args)

        def after(tap: str) -> Callable[[Any, Any, Any], None]:
            return lambda _module, _args, output: keep(tap, output)

        with ExitStack() as hooks:
            for tap in kept:
                find, reads = SITES[tap]
                for module in map(find, self.model.model.layers):
                    handle = module.register_forward_pre_hook(before(tap)) if reads else module.register_forward_hook(after(tap))
                    hooks.callback(handle.remove)
            yield

    def tops(self, found: list[list[tuple[Tensor, Tensor]]], taps: list[str]) -> Tops:
        """See Peer."""
        layers = len(self.model.model.layers)
        batches = [tuple(torch.cat([part[which][:, 0] for part in batch]) for which in (0, 1)) for batch in found]
        logprobs, ids = (torch.cat([batch[which].view(len(taps), layers, -1) for batch in batches], dim=2) for which in (0, 1))
        return {tap: (ids[number].tolist(), logprobs[number].tolist()) for number, tap in enumerate(taps)}


if __name__ == "__main__":
    serve(Hooks.load)
