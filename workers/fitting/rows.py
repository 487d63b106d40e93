"""Hidden states of batches of prompts: what a lens reads, and the last block's output that it is compared with.

The first position is left out: its residual is far larger than all others in many models, and predicts nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from raylens.storage.record import Prompt
from raylens.workers.adapter import Adapter
from raylens.workers.batching import batches, pad
from raylens.workers.capture import capture
from raylens.workers.lenses.interface import Place
from raylens.workers.tokenize import Tokenized


def batched(prompts: list[list[int]], tokens: int, switch: int | None) -> list[list[Tokenized]]:
    """Batches of prompts of like length, the longest first."""
    ready = [Tokenized(Prompt(n, str(n)), "", ids, list(range(1, len(ids))), None) for n, ids in enumerate(prompts)]
    return list(batches(ready, tokens, switch=switch))


class HiddenRows:
    """Runs the model for the rows of chosen places.

    Args:
        adapter: of the model.
        places: that are wanted.
        inputs: where token ids go.
        outputs: where rows are wanted.
    """

    def __init__(self, adapter: Adapter, places: list[Place], inputs: torch.device, outputs: torch.device) -> None:
        self._trunk = adapter.trunk
        self.last: Place = ("resid_post", len(adapter.sites) - 1)
        self._sites = {(tap, layer): adapter.sites[layer][tap] for tap, layer in [*places, self.last]}
        self._inputs, self._outputs = inputs, outputs

    @torch.no_grad()  # not inference_mode, whose tensors cannot be trained on
    def __call__(self, prompts: list[Tokenized]) -> dict[Place, Tensor]:
        """[N, D] float32 of every place and of ``last``, prompt after prompt."""
        found: dict[Place, Tensor] = {}
        batch = pad(prompts, self._inputs)

        def take(tap: str, layer: int, rows: Tensor) -> None:
            found[tap, layer] = rows.to(self._outputs).float()

        with capture(self._sites, batch.rows, take):
            self._trunk(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        return found


def places(kind: str, n_layers: int) -> list[Place]:
    """The places that a kind of lens has maps for: a tuned lens also for the embedding, neither for the last block's output."""
    outputs: list[Place] = [("resid_post", layer) for layer in range(n_layers - 1)]
    return [("resid_pre", 0), *outputs] if kind == "tuned" else outputs


def epochs(ready: list[list[Tokenized]], generator: torch.Generator) -> Iterator[list[Tokenized]]:
    """The batches in random order, again and again."""
    while True:
        for number in torch.randperm(len(ready), generator=generator).tolist():
            yield ready[number]
