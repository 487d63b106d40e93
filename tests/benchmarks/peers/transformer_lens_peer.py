"""TransformerLens: ``run_with_cache`` with a filter of names, then ``ln_final`` and ``unembed`` (its main demo's caching).

TransformerBridge, the only model class since version 4, keeps the model's weights as they are, so its numbers are the model's.
Its attention is always the eager one. ``cache.accumulated_resid`` with ``apply_ln`` would scale every tap by the last norm's
factor, which is another lens.
"""

import torch
from torch import Tensor
from transformer_lens import TransformerBridge
from transformers import AutoTokenizer

from tests.benchmarks.peers.padded import Padded
from tests.benchmarks.peers.turns import serve


class TransformerLens(Padded):
    """A bridged model."""

    packages = ("transformer-lens", "torch", "transformers")

    def __init__(self, folder: str) -> None:
        self._bridge = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
        # the bridge's own tokenizer puts a beginning-of-text token first, which this model does not expect
        super().__init__(AutoTokenizer.from_pretrained(folder), self._bridge.cfg.n_layers)

    def hidden(self, ids: Tensor, mask: Tensor, taps: list[str]) -> list[Tensor]:
        """See Padded."""
        names = [f"blocks.{layer}.hook_{tap}" for tap in taps for layer in range(self._layers)]
        _, cache = self._bridge.run_with_cache(ids, attention_mask=mask, names_filter=names, return_type=None)
        return [cache[name] for name in names]

    def logits(self, rows: Tensor) -> Tensor:
        """See Padded."""
        logits: Tensor = self._bridge.unembed(self._bridge.ln_final(rows[None]))[0]
        return logits


if __name__ == "__main__":
    serve(TransformerLens)
