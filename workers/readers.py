"""What becomes of the hidden rows that hooks hand over: read out each by itself, or as parts of running sums (walk.py)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.asked import Asked
from raylens.workers.heap import heap_trimmed
from raylens.workers.lenses.interface import Place
from raylens.workers.projection import Projection
from raylens.workers.topk import Readout
from raylens.workers.walk import Part, Walk

#: How far an entry of a residual may be from the sum of its parts, relative to the largest that this sum has been, for the
#: residual to be read out as that sum: some roundings. A row's large entries say nothing of its others, which may be edited.
SUM_TOLERANCE = 2e-6
#: How many times smaller than a part of its sum a residual may be. What large parts rounded off stays when later ones take them
#: away again, as massive activations are (Sun et al., 2024): float32 loses 1e-4 of a logprob where that is a thousandfold.
SHRUNK = 64

_ADDED = ("attn_out", "mlp_out")


class Read(NamedTuple):
    """The Readout of one (tap, layer) in memory of numpy's; ids and ranks are uint32."""

    ids: NDArray[Any]
    logprobs: NDArray[Any]
    logsumexp: NDArray[Any]
    entropy: NDArray[Any]
    target_logprobs: NDArray[Any]
    target_ranks: NDArray[Any]
    kl: NDArray[Any]


class DirectReader:
    """Collects rows and reads them out together: one large product is far faster than many small ones.

    Args:
        projection: from rows to logits.
        k: tokens kept.
        budget: bytes of rows beyond which they are read out, so that memory stays flat in layers and length.
        asked: what else is asked of each of the N tokens.

    Attributes:
        done: the read-outs of a batch, all of them after ``flush``.
    """

    def __init__(self, projection: Projection, k: int, budget: int, asked: Asked | None = None) -> None:
        self._projection = projection
        self._k = k
        self._asked = asked
        self._budget = budget
        self._pending: list[tuple[Place, Tensor]] = []
        self._bytes = 0
        self.done: dict[Place, Read] = {}

    def take(self, tap: str, layer: int, rows: Tensor) -> None:
        """Take [N, D] rows of a tap; they are the reader's from now on."""
        self._pending.append(((tap, layer), rows))
        self._bytes += _size(rows)
        if self._bytes >= self._budget:
            self.flush()

    def flush(self) -> None:
        """Read out what is waiting."""
        if not self._pending:
            return
        device = self._pending[-1][1].device  # under a device map the last layer's, nearest to the head
        places = [place for place, _ in self._pending]
        with heap_trimmed(device, self._bytes):
            # all places of a token lie together, for they are compared with one and the same final prediction
            rows = torch.stack([rows.to(device) for _, rows in self._pending], dim=1).flatten(0, 1)
            self._pending, self._bytes = [], 0
            read = _kept(self._projection.read(rows, self._k, self._asked and self._asked.repeated(len(places))))
            del rows  # free when the heap is trimmed again
        for number, place in enumerate(places):
            self.done[place] = Read(*(values[number :: len(places)] for values in read))


class WalkReader:
    """Collects what is added to the residual, and reads out segments of the sum.

    A segment begins with the residual as the model stored it. It ends where the budget is used up, wherever the sum does not
    reproduce what the model stored, so a residual is never read out as a sum that it is not, and where parts far larger than
    what they add up to have rounded it.

    Args:
        walk: reads segments out.
        k: tokens kept.
        wanted: places to read out.
        starts: places of residuals at which a segment begins.
        budget, asked, done: as of DirectReader.
    """

    def __init__(
        self,
        walk: Walk,
        k: int,
        wanted: frozenset[Place],
        starts: frozenset[Place],
        budget: int,
        asked: Asked | None = None,
    ) -> None:
        self._walk = walk
        self._k = k
        self._wanted = wanted
        self._starts = starts
        self._budget = budget
        self._asked = asked
        self._parts: list[Part] = []
        self._bytes = 0
        self._sum = self._span = torch.empty(0)  # [N, D], and how large each entry of it has been
        self._largest = torch.empty(0)  # [N] the largest entry of its parts
        self._stored: Tensor | None = None  # the residual, while nothing has been added to it since
        self.done: dict[Place, Read] = {}

    def take(self, tap: str, layer: int, rows: Tensor) -> None:
        """Take [N, D] float32 rows of a tap, in the order in which the model adds them up."""
        place = (tap, layer)
        wanted = place if place in self._wanted else None
        if tap in _ADDED:
            if self._stored is not None and (self._bytes >= self._budget or not self._parts):
                self.flush()
                self._begin(self._stored, None)
            self._stored = None
            self._sum += rows
            torch.maximum(self._span, self._sum.abs(), out=self._span)
            self._append(Part(rows, own=wanted))
        elif place not in self._starts and self._adds_up_to(rows):
            self._parts[-1].total = wanted
            self._parts[-1].scale = self._walk.norm.scale(rows)
            self._stored = rows
        else:
            self.flush()
            self._begin(rows, wanted)

    def flush(self) -> None:
        """Read out the segment so far."""
        if not self._parts:
            return
        with heap_trimmed(self._parts[0].rows.device, self._bytes):
            found = self._walk.read(self._parts, self._k, self._asked)
            self.done |= {place: _kept(read) for place, read in found.items()}
            self._parts, self._bytes = [], 0

    def _begin(self, residual: Tensor, wanted: Place | None) -> None:
        self._sum, self._span = residual.clone(), residual.abs()
        self._largest = torch.zeros(len(residual))
        self._stored = residual
        self._append(Part(residual, total=wanted))

    def _append(self, part: Part) -> None:
        self._parts.append(part)
        self._bytes += _size(part.rows)
        self._largest = torch.maximum(self._largest, _largest(part.rows))

    def _adds_up_to(self, stored: Tensor) -> bool:
        size = _largest(stored)
        exact = ((self._sum - stored).abs() <= SUM_TOLERANCE * self._span).all(dim=1) & (self._largest <= SHRUNK * size)
        # rows that are not finite come out as such either way, and must not change how their neighbours are read
        return bool((exact | ~size.isfinite()).all())


def _largest(rows: Tensor) -> Tensor:
    """[N] the largest entry of each of [N, D] rows."""
    return rows.abs().amax(dim=1)


def _size(rows: Tensor) -> int:
    return rows.numel() * rows.element_size()


def _kept(read: Readout) -> Read:
    kept = Read(*(values.cpu().numpy() for values in read))
    return kept._replace(ids=kept.ids.astype(np.uint32), target_ranks=kept.target_ranks.astype(np.uint32))
