"""The seed's job in the usual way, well written: transformers' generate with its cache, and hooks that read each step.

All prompts are one batch, padded on the left; norm, head, log_softmax and topk follow at each step, for all places at once.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from tests.benchmarks.peers.hooks import SITES
from tests.benchmarks.peers.seed import NEW_TOKENS
from tests.benchmarks.peers.turns import K, Tops, serve


class _Step(LogitsProcessor):
    """Called once a step: reads out what the hooks kept."""

    def __init__(self, kept: list[Tensor], norm: Any, head: Any) -> None:
        self._kept, self._norm, self._head = kept, norm, head
        self.found: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.cat(self._kept)
        self._kept.clear()
        logprobs, ids = torch.log_softmax(self._head(self._norm(rows)), dim=1).topk(K, dim=1)
        self.found.append((logprobs, ids))
        return scores


class HooksGenerate:
    """A Llama-like model and its tokenizer."""

    packages = ("torch", "transformers")

    def __init__(self, folder: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token

    @torch.inference_mode()
    def lens(self, texts: list[str], taps: list[str]) -> list[tuple[Tensor, Tensor]]:
        """Of each step (logprobs, ids), [rows, K]; rows are layers, then taps as they come, then texts."""
        body = self._model.model
        kept: list[Tensor] = []
        step = _Step(kept, body.norm, self._model.lm_head)
        with ExitStack() as hooks:
            for block in body.layers:
                for tap in taps:
                    find, reads = SITES[tap]
                    hooks.callback(_hook(find(block), reads, kept).remove)
            batch = self._tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
            padding = self._tokenizer.pad_token_id
            written = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": padding}
            self._model.generate(**batch, **written, logits_processor=LogitsProcessorList([step]))
        return step.found

    def tops(self, found: list[tuple[Tensor, Tensor]], taps: list[str]) -> Tops:
        """See Peer: tokens as text, as the seed has them."""
        layers = len(self._model.model.layers)
        best = torch.stack([ids[:, 0] for _, ids in found]).view(len(found), layers, len(taps), -1)
        by_tap = best.permute(2, 1, 3, 0).flatten(2)  # [taps, layers, texts, then steps]
        return {
            tap: ([self._tokenizer.batch_decode(row.unsqueeze(1)) for row in rows], None)
            for tap, rows in zip(taps, by_tap, strict=True)
        }


def _hook(module: Any, reads: bool, kept: list[Tensor]) -> Any:
    def keep(value: Tensor | tuple[Tensor, ...]) -> None:
        kept.append((value if isinstance(value, Tensor) else value[0])[:, -1])

    if reads:
        return module.register_forward_pre_hook(lambda _module, args: keep(args[0]))
    return module.register_forward_hook(lambda _module, _args, output: keep(output))


if __name__ == "__main__":
    serve(HooksGenerate)
