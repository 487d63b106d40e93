"""tuned-lens: its ``LogitLens`` and ``PredictionTrajectory.from_lens_and_model``, a prompt at a time (its own tutorial's way).

It reads the block outputs only, and keeps the logprobs of the whole vocabulary as one numpy array, of which torch then chooses
the best K; numpy's partition, which its plots use, is slower.
"""

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_lens.nn.lenses import LogitLens
from tuned_lens.plotting import PredictionTrajectory

from tests.benchmarks.peers.turns import K, Tops, serve


class TunedLens:
    """A model and its logit lens."""

    packages = ("tuned-lens", "torch", "transformers")

    def __init__(self, folder: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._lens = LogitLens.from_model(self._model)

    @torch.inference_mode()
    def lens(self, texts: list[str], taps: list[str]) -> list[tuple[Tensor, Tensor]]:
        """(logprobs, ids) of each text, [layers, T, K]."""
        if taps != ["resid_post"]:
            raise ValueError(f"reads block outputs only, not {', '.join(taps)}")
        return [self._text(ids) for ids in self._tokenizer(texts).input_ids]

    def _text(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        found = PredictionTrajectory.from_lens_and_model(self._lens, self._model, ids).log_probs
        # its first is the embedding, its last the model's own logits: the last block's output
        logprobs = torch.from_numpy(found[1:]).view(len(found) - 1, len(ids), -1)
        best, tokens = logprobs.topk(K, dim=2)
        return best, tokens

    def tops(self, found: list[tuple[Tensor, Tensor]], taps: list[str]) -> Tops:
        """See Peer."""
        logprobs, ids = (torch.cat([text[which][:, :, 0] for text in found], dim=1).tolist() for which in (0, 1))
        return {"resid_post": (ids, logprobs)}


if __name__ == "__main__":
    serve(TunedLens)
