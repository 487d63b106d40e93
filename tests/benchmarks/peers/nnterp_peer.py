"""nnterp: a trace a batch over its standard accessors, then ``project_on_vocab``, as its own ``logit_lens`` does.

nnterp names no middle residual; it is read where nnsight finds it, as the input of the MLP's norm. The trace stops after the
last block, as ``get_token_activations`` has it.
"""

import torch
from nnterp import StandardizedTransformer
from torch import Tensor

from tests.benchmarks.peers.padded import Padded
from tests.benchmarks.peers.turns import serve


class Nnterp(Padded):
    """A standardized model."""

    packages = ("nnterp", "nnsight", "torch", "transformers")

    def __init__(self, folder: str) -> None:
        self._model = StandardizedTransformer(folder, dtype=torch.float32, device_map="cpu")
        super().__init__(self._model.tokenizer, self._model.num_layers)

    def hidden(self, ids: Tensor, mask: Tensor, taps: list[str]) -> list[Tensor]:
        """See Padded."""
        model = self._model
        with model.trace({"input_ids": ids, "attention_mask": mask}) as tracer:
            kept = {tap: [] for tap in taps}.save()
            for layer in range(self._layers):  # in the order in which the model computes, as nnsight asks
                if "attn_out" in taps:
                    kept["attn_out"].append(model.attentions_output[layer])
                if "resid_mid" in taps:
                    kept["resid_mid"].append(model.layers[layer].post_attention_layernorm.input)
                if "mlp_out" in taps:
                    kept["mlp_out"].append(model.mlps_output[layer])
                if "resid_post" in taps:
                    kept["resid_post"].append(model.layers_output[layer])
            tracer.stop()
        return [value for tap in taps for value in kept[tap]]

    def logits(self, rows: Tensor) -> Tensor:
        """See Padded."""
        logits: Tensor = self._model.project_on_vocab(rows)
        return logits


if __name__ == "__main__":
    serve(Nnterp)
