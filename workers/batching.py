"""Batches of prompts of like length, padded on the right: with a causal mask that gives what each prompt gives alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raylens.workers.tokenize import Tokenized

#: One in so many tokens of the largest batch may be padding.
PADDING_SHARE = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """B prompts padded to T tokens.

    Attributes:
        prompts: the prompts.
        ids, mask: [B, T] int64.
        rows: [N] int64, the chosen positions as rows of the flattened [B*T], prompt after prompt.
    """

    prompts: list[Tokenized]
    ids: Tensor
    mask: Tensor
    rows: Tensor

    @property
    def following(self) -> list[int]:
        """[N] the token after each chosen position, -1 where there is none."""
        return [
            prompt.ids[position + 1] if position + 1 < len(prompt.ids) else -1
            for prompt in self.prompts
            for position in prompt.positions
        ]

    @property
    def tracked(self) -> list[tuple[int, ...]]:
        """[N] the tokens tracked there."""
        return [prompt.tracked for prompt in self.prompts for _ in prompt.positions]


def position_switch(config: Any) -> int | None:
    """The tokens after which a model turns positions otherwise (LongRoPE, arXiv:2402.13753); None where none does.

    transformers goes by the longest prompt of a batch, so that prompts on both sides must not share one.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # of one kind of layer, or of several
    name = "original_max_position_embeddings"  # among the parameters, or where Phi-3 has it
    own: Any = getattr(config, name, None) or getattr(config, "max_position_embeddings", 0)
    # code that comes with a checkpoint has other names for it (su), but the same factors
    turning = [part for part in each if part.get("rope_type") == "longrope" or "long_factor" in part]
    return min((int(part.get(name) or own) for part in turning), default=None)


def batches(
    prompts: Sequence[Tokenized], max_tokens: int, new: int = 0, padded: bool = True, switch: int | None = None
) -> Iterator[list[Tokenized]]:
    """Prompts by falling length, so that the largest batch comes first.

    A batch has at most ``max_tokens`` tokens, padding included, and only a small share of them may be padding: once it costs
    more than to read the weights another time does, a new batch is cheaper.

    Args:
        new: tokens that are to be generated after each, which count too, for their keys and values are kept as well.
        padded: whether prompts of different lengths may be in one batch.
        switch: of the model's positions (``position_switch``).
    """

    def side(prompt: Tokenized) -> int:
        """Below the switch to its end, above it, or to pass it at a step that only prompts as long share."""
        length = len(prompt.ids)
        return 0 if switch is None or length + new <= switch else -1 if length > switch else length

    batch: list[Tokenized] = []
    padding = 0
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.ids), reverse=True):
        if batch:
            longest = len(batch[0].ids)
            padding += longest - len(prompt.ids)
            full = (longest + new) * (len(batch) + 1) > max_tokens or padding > max_tokens // PADDING_SHARE
            if full or (padding and not padded) or side(prompt) != side(batch[0]):
                yield batch
                batch, padding = [], 0
        batch.append(prompt)
    if batch:
        yield batch


def pad(prompts: list[Tokenized], device: torch.device) -> Batch:
    """Pad on the right. The padding id is 0: masked, and after every real token, it is never read."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    rows: list[int] = []
    for number, prompt in enumerate(prompts):
        ids[number, : len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[number, : len(prompt.ids)] = 1
        rows += [number * longest + position for position in prompt.positions]
    return Batch(prompts, ids.to(device), mask.to(device), torch.tensor(rows, device=device))
