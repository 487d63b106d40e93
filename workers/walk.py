"""The lens of a residual and of all that was added to it, from the products of the additions alone.

The final norm is linear up to one factor per row and the head is linear, so the unscaled logits of resid_mid and resid_post are
running sums of those of attn_out and mlp_out: four taps for two products a layer. Used for float32 models on a CPU, where the
sums hold exactly; in a short type the residual's own rounding makes them differ by whole logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.after_head import AfterHead
from raylens.workers.asked import Asked, Final, Tally, nothing_asked
from raylens.workers.lenses.interface import Place
from raylens.workers.linear import LinearNorm
from raylens.workers.product import Unembedding
from raylens.workers.running import NO_WEIGHTS, States, block_size
from raylens.workers.threads import each, shares
from raylens.workers.topk import Readout, joined

Slots = NDArray[np.int64]


@dataclass(slots=True)
class Part:
    """One term of a sum, for N tokens.

    Attributes:
        rows: [N, D] float32.
        own: where the lens of the term itself goes, if wanted.
        total: where the lens of the sum up to it goes, if wanted.
        scale: [N] the norm's factor for that sum.
    """

    rows: Tensor
    own: Place | None = None
    total: Place | None = None
    scale: Tensor | None = None


class Walk:
    """Reads out sums part by part.

    Args:
        norm: the final norm in parts.
        unembedding: makes products with the head, float32.
        step: what follows it.
        error: the largest difference of a logit from float64 that was measured.
    """

    def __init__(self, norm: LinearNorm, unembedding: Unembedding, step: AfterHead, error: float) -> None:
        self.norm = norm
        self.error = error
        self._unembedding = unembedding
        self._head = head = unembedding.head
        self._step = step
        with align_module_device(head):
            constant = torch.mv(head.weight, norm.bias)
            self._constant = constant if head.bias is None else constant + head.bias

    @torch.inference_mode()
    def read(self, parts: list[Part], k: int, asked: Asked | None = None) -> dict[Place, Readout]:
        """The read-out of every place the C parts name, for all N tokens, and what else is asked of each token."""
        places, tokens = _places(parts), len(parts[0].rows)
        if not places or not tokens:
            return {}
        rows = tokens * len(parts)
        workers = self._unembedding.workers(rows, tokens)
        tiles = min(tokens, workers * -(-rows // (self._unembedding.most_rows * workers)))
        with align_module_device(self._head):
            reads = each(lambda tile: self._read_tile(parts, tile, k, asked and asked.part(tile)), shares(tokens, tiles), workers)
        return {place: joined([read[number] for read in reads]) for number, place in enumerate(places)}

    @torch.inference_mode()
    def _read_tile(self, parts: list[Part], tile: slice, k: int, asked: Asked | None) -> list[Readout]:
        from raylens.workers.kernels.walk import walk_block

        rows = torch.stack([part.rows[tile] for part in parts])
        slots, scales = _slots(parts), self._scales(parts, rows, tile)
        questioned = np.array([asked is not None and asked.about(tap) for tap, _ in _places(parts)])
        weighted = self.norm.weighted(rows)
        tally = self._tally(asked, weighted, scales, slots)
        states, tokens = States(len(tally.logits), k), rows.shape[1]
        arrays = _shaped(states, tally, tokens)
        factor, cap = np.float32(self._step.factor), np.float32(self._step.cap)
        final = asked.final if asked else None
        for start, products, compared in self._products(weighted, final, k):
            constant = self._constant[start : start + products.shape[2]].numpy()
            probabilities = tally.weights(compared)
            weights = NO_WEIGHTS if probabilities is None else probabilities.numpy()
            walk_block(products.numpy(), constant, start, scales.numpy(), slots, factor, cap, questioned, weights, *arrays)
        return states.finish(len(self._head.weight), tally).split(tokens)

    def _products(self, weighted: Tensor, final: Final | None, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each block: its first token, [C, T, B] products of the parts, and [T, B] logits of the final layer, if wanted."""
        count, tokens, width = weighted.shape
        left = weighted.view(-1, width)
        if final is not None:
            left, scale = torch.cat([left, self.norm.weighted(final.rows)]), self.norm.scale(final.rows).unsqueeze(1)
        size = block_size(len(left), left.device, k)
        for start, products in self._unembedding.blocks(left, size):
            own, last = torch.split(products, [count * tokens, len(left) - count * tokens])
            if final is not None:
                last = self._step(last * scale + self._constant[start : start + last.shape[1]])
            yield start, own.view(count, tokens, -1), last

    def _scales(self, parts: list[Part], rows: Tensor, tile: slice) -> Tensor:
        """[2, C, T] the norm's factor for each part itself, and for the sum up to it."""
        own = self.norm.scale(rows)
        total = torch.stack([scale if part.scale is None else part.scale[tile] for part, scale in zip(parts, own, strict=True)])
        return torch.stack([own, total])

    def _tally(self, asked: Asked | None, weighted: Tensor, scales: Tensor, slots: Slots) -> Tally:
        """For S read-outs of T tokens each: the targets' logits as the kernel makes them, from products and running sums."""
        order = np.argsort(slots, axis=None)[-int((slots >= 0).sum()) :]  # (own or sum, part) of each read-out in turn
        tokens = weighted.shape[1]
        if asked is None:
            return nothing_asked(len(order) * tokens, weighted.device)
        ids, place = torch.unique(asked.targets, return_inverse=True)
        products = (weighted @ self._head.weight[ids].T).gather(2, place.expand(len(weighted), -1, -1))
        both = torch.stack([products, products.cumsum(dim=0)]) * scales.unsqueeze(-1) + self._constant[asked.targets]
        logits = self._step(both.flatten(0, 1)[torch.from_numpy(order)]).flatten(0, 1)
        repeated = Asked(asked.targets.repeat(len(order), 1), asked.token.repeat(len(order)), asked.final)
        return Tally(repeated, logits)


def _shaped(states: States, tally: Tally, tokens: int) -> tuple[NDArray[Any], ...]:
    """What the kernel updates of S read-outs of T tokens: the arrays themselves, [S, T, ...]."""
    targets, logits, above, _, cross = tally.arrays()
    rows = (states.statistics, states.values, states.ids, targets, logits, above)
    read_outs = len(cross) // tokens
    return (*(array.reshape(read_outs, tokens, -1) for array in rows), cross.reshape(read_outs, tokens))


def _places(parts: list[Part]) -> list[Place]:
    """The wanted read-outs, in the order of the parts."""
    return [place for part in parts for place in (part.own, part.total) if place is not None]


def _slots(parts: list[Part]) -> Slots:
    """[2, C] numbers of the wanted read-outs, in the order of the parts; -1 where none is."""
    slots = np.full((2, len(parts)), -1)
    number = 0
    for c, part in enumerate(parts):
        for which, place in enumerate((part.own, part.total)):
            if place is not None:
                slots[which, c] = number
                number += 1
    return slots
