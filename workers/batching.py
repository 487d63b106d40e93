"""Batches of prompts of like length, padded on the right: with a causal mask that gives what each prompt gives alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.tokenize import Tokenized

#: One in so many tokens of the largest batch may be padding.
PADDING_SHARE = 8


#: Number of a prompt in its batch, and a position of it.
_At = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """B prompts padded to T tokens, of which N positions are read.

    Attributes:
        prompts: the prompts.
        ids, mask: [B, T] int64.
        read: [N] whose position is read, and which.
        places: of each prompt, which of the N are its chosen positions.
        rows: [N] int64, the same as rows of the flattened [B*T].
    """

    prompts: list[Tokenized]
    ids: Tensor
    mask: Tensor
    read: list[_At]
    places: list[NDArray[np.int64]]
    rows: Tensor

    @property
    def following(self) -> list[int]:
        """[N] the token after each, -1 where there is none."""
        after = [[*prompt.ids[1:], -1] for prompt in self.prompts]
        return [after[number][position] for number, position in self.read]

    @property
    def tracked(self) -> list[tuple[int, ...]]:
        """[N] the tokens tracked there."""
        return [self.prompts[number].tracked for number, _ in self.read]


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


def pad(prompts: list[Tokenized], device: torch.device, once: bool = False) -> Batch:
    """Pad on the right. The padding id is 0: masked, and after every real token, it is never read.

    Args:
        once: whether a place is read once for all prompts that are the same up to the token after it. A causal model gives them
            the same there (trunk.py measures that), unless it is edited at positions that count from a prompt's end.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, : len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[number, : len(prompt.ids)] = 1
    read, places = _shared(prompts) if once else _each(prompts)
    rows = torch.tensor([number * longest + position for number, position in read], device=device)
    return Batch(prompts, ids.to(device), mask.to(device), read, places, rows)


def _each(prompts: list[Tokenized]) -> tuple[list[_At], list[NDArray[np.int64]]]:
    """Every chosen position, prompt after prompt."""
    read = [(number, position) for number, prompt in enumerate(prompts) for position in prompt.positions]
    ends = np.cumsum([len(prompt.positions) for prompt in prompts])
    return read, np.split(np.arange(len(read)), ends[:-1])


def _shared(prompts: list[Tokenized]) -> tuple[list[_At], list[NDArray[np.int64]]]:
    """The first of all chosen positions that are the same up to the token after them, and in what is tracked."""
    read: list[_At] = []
    places: list[NDArray[np.int64]] = []
    numbers: dict[tuple[int, int], int] = {}
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for number, prompt in enumerate(prompts):
        with_next = _beginnings([*prompt.ids, -1], numbers)[1:]
        keys = [(with_next[position], prompt.tracked) for position in prompt.positions]
        for position, key in zip(prompt.positions, keys, strict=True):
            if key not in known:
                known[key] = len(read)
                read.append((number, position))
        places.append(np.array([known[key] for key in keys], dtype=np.int64))
    return read, places


def _beginnings(ids: Sequence[int], numbers: dict[tuple[int, int], int]) -> list[int]:
    """The number of the beginning that ends with each token; equal beginnings have equal numbers.

    Args:
        numbers: number of a beginning, and the token after it -> number of the longer one; filled here.
    """
    found = [0]
    for token in ids:
        found.append(numbers.setdefault((found[-1], token), len(numbers) + 1))
    return found[1:]
