"""The seed's job with raylens: generate with transformers and its key-value cache, then one lens pass over the last positions.

In a causal model the last ten positions of the text hold what each step's last position held, so one pass reads them all.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylens.storage.record import Prompt, Record
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.benchmarks.peers.raylens_worker import tops
from tests.benchmarks.peers.seed import NAMES, NEW_TOKENS
from tests.benchmarks.peers.turns import K, Tops, serve


class RaylensSeedJob:
    """A model that generates and a worker that reads."""

    packages = ("torch", "transformers", "numba")

    def __init__(self, folder: str) -> None:
        lens = LensSettings(K, taps=tuple(NAMES), positions=f"last:{NEW_TOKENS}")
        self._worker = Worker(WorkerSettings(ModelSettings(folder, dtype="float32"), lens))
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None  # the seed does not stop at one
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token

    def lens(self, texts: list[str], taps: list[str]) -> list[Record]:
        """A record a text, of the positions from which its new tokens were predicted."""
        batch = self._tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        padding = self._tokenizer.pad_token_id
        written = self._model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=padding)
        starts = (1 - batch.attention_mask).sum(dim=1).tolist()
        rows = [row[start:-1].tolist() for row, start in zip(written, starts, strict=True)]
        return list(self._worker.run([Prompt(number, str(number), token_ids=row) for number, row in enumerate(rows)]))

    def tops(self, found: list[Record], taps: list[str]) -> Tops:
        """See Peer: tokens as text, as the seed has them."""
        read = tops(found, taps)
        return {tap: ([self._tokenizer.batch_decode([[token] for token in row]) for row in read[tap][0]], None) for tap in taps}


if __name__ == "__main__":
    serve(RaylensSeedJob)
