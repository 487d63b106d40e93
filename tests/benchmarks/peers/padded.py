"""What the peers that read any tap have in common, so that they differ only in how they come to hidden states and logits.

Right padding with a mask gives each prompt what it gives alone; only real positions are read out, in chunks whose logits stay
in memory at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.peers.turns import K, Tops

#: Prompts of a forward pass, and rows read out at once: of 32 to 1,024 rows these were the fastest.
BATCH, CHUNK = 8, 256

_Chunks = list[tuple[Tensor, Tensor]]


class Padded(ABC):
    """A model, read batch by batch.

    Args:
        tokenizer: of the model.
        layers: how many blocks it has.
    """

    def __init__(self, tokenizer: Any, layers: int) -> None:
        self._tokenizer = tokenizer
        self._layers = layers
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    @abstractmethod
    def hidden(self, ids: Tensor, mask: Tensor, taps: list[str]) -> list[Tensor]:
        """[B, T, D] of each tap, layer by layer, of [B, T] ids and mask."""

    @abstractmethod
    def logits(self, rows: Tensor) -> Tensor:
        """[N, V] of [N, D] rows: the model's own final norm and head."""

    @torch.inference_mode()
    def lens(self, texts: list[str], taps: list[str]) -> list[_Chunks]:
        """Of each batch, chunks of (logprobs, ids), [rows, K] each; rows are taps, then layers, then tokens."""
        return [list(self._batch(texts[first : first + BATCH], taps)) for first in range(0, len(texts), BATCH)]

    def _batch(self, texts: list[str], taps: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self._tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        chosen = batch.attention_mask.flatten().nonzero().squeeze(1)
        hidden = self.hidden(batch.input_ids, batch.attention_mask, taps)
        rows = torch.cat([value.flatten(0, 1)[chosen] for value in hidden])
        for chunk in rows.split(CHUNK):
            logprobs, ids = torch.log_softmax(self.logits(chunk), dim=1).topk(K, dim=1)
            yield logprobs, ids

    def tops(self, found: list[_Chunks], taps: list[str]) -> Tops:
        """See Peer."""
        shape = (len(taps), self._layers, -1)
        logprobs, ids = (
            torch.cat([torch.cat([chunk[which][:, 0] for chunk in batch]).view(shape) for batch in found], dim=2)
            for which in (0, 1)
        )
        return {tap: (ids[number].tolist(), logprobs[number].tolist()) for number, tap in enumerate(taps)}
