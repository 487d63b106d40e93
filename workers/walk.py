"""The lens of a residual and of all that was added to it, from the products of the additions alone.

The final norm is linear up to one factor per row and the head is linear, so the unscaled logits of resid_mid and resid_post are
running sums of those of attn_out and mlp_out: four taps for two products a layer. Used for float32 models on a CPU, where the
sums hold exactly; in a short type the residual's own rounding makes them differ by whole logits.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from raylens.workers.linear import LinearNorm
from raylens.workers.projection import ROWS, joined
from raylens.workers.running import States, block_size
from raylens.workers.steps import AfterHead
from raylens.workers.threads import each, workers_for
from raylens.workers.topk import Readout

#: (tap, layer).
Place = tuple[str, int]


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
        head: the output embedding, float32.
        step: what follows it.
        error: the largest difference of a logit from float64 that was measured.
    """

    def __init__(self, norm: LinearNorm, head: nn.Linear, step: AfterHead, error: float) -> None:
        self.norm = norm
        self.error = error
        self._head = head
        self._step = step
        with align_module_device(head):
            constant = torch.mv(head.weight, norm.bias)
            self._constant = constant if head.bias is None else constant + head.bias

    @torch.inference_mode()
    def read(self, parts: list[Part], k: int) -> dict[Place, Readout]:
        """The read-out of every place the C parts name, for all N tokens."""
        places = [place for part in parts for place in (part.own, part.total) if place is not None]
        tokens = len(parts[0].rows)
        if not places or not tokens:
            return {}
        rows = tokens * len(parts)
        workers = workers_for(rows)
        tiles = min(tokens, workers * -(-rows // (ROWS * workers)))
        edges = [tokens * tile // tiles for tile in range(tiles + 1)]
        slices = [slice(start, stop) for start, stop in pairwise(edges)]
        with align_module_device(self._head):
            reads = each(lambda tile: self._read_tile(parts, tile, len(places), k), slices, workers)
        return {place: joined([read[number] for read in reads]) for number, place in enumerate(places)}

    @torch.inference_mode()
    def _read_tile(self, parts: list[Part], tile: slice, wanted: int, k: int) -> list[Readout]:
        from raylens.workers.kernels.walk import walk_block

        rows = torch.stack([part.rows[tile] for part in parts])
        scales = self._scales(parts, rows, tile)
        slots, factor, cap = _slots(parts), np.float32(self._step.factor), np.float32(self._step.cap)
        count, tokens, width = rows.shape
        weighted = self.norm.weighted(rows).view(-1, width)
        states = States(wanted * tokens, k)
        shape = (wanted, tokens, -1)
        statistics, values, ids = states.statistics.reshape(shape), states.values.reshape(shape), states.ids.reshape(shape)
        weight = self._head.weight
        size = block_size(len(weighted), weighted.device, k)
        memory = weighted.new_empty(len(weighted) * min(size, len(weight)))  # one for all blocks
        for start in range(0, len(weight), size):
            block = weight[start : start + size]
            products = memory[: len(weighted) * len(block)].view(len(weighted), len(block))
            torch.mm(weighted, block.T, out=products)
            constant = self._constant[start : start + size].numpy()
            shaped = products.view(count, tokens, -1).numpy()
            walk_block(shaped, constant, start, scales, slots, factor, cap, statistics, values, ids)
        read = states.finish(len(weight))
        fields = (torch.split(value, tokens) for value in (read.ids, read.logprobs, read.logsumexp, read.entropy))
        return [Readout(*values) for values in zip(*fields, strict=True)]

    def _scales(self, parts: list[Part], rows: Tensor, tile: slice) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        own = self.norm.scale(rows)
        total = torch.stack([scale if part.scale is None else part.scale[tile] for part, scale in zip(parts, own, strict=True)])
        return torch.stack([own, total]).numpy()


def _slots(parts: list[Part]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[2, C] numbers of the wanted read-outs, in the order of the parts; -1 where none is."""
    slots = np.full((2, len(parts)), -1)
    number = 0
    for c, part in enumerate(parts):
        for which, place in enumerate((part.own, part.total)):
            if place is not None:
                slots[which, c] = number
                number += 1
    return slots
