"""The compiled form of topk.RunningReadout, and which of the two a read-out uses."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from raylens.storage.errors import named_line
from raylens.workers.asked import Tally, nothing_asked
from raylens.workers.kernels.floats import PIECE
from raylens.workers.topk import Readout, RunningReadout, finished

#: Keeping the best by insertion takes time that grows with k; beyond this selecting, as the plain form does, is faster.
MOST_KEPT = 128
#: Most tokens that the Triton kernel keeps.
MOST_FUSED = 64
#: Logits that exist at once in a thread. Compiled, a block is best while it stays in the cache (docs/decisions/0002); plain, it
#: must be wide enough that the dozen passes over it are not many.
COMPILED_LOGITS, PLAIN_LOGITS = 1 << 19, 1 << 22


@cache
def not_compiled() -> str:
    """Why compiled code cannot be used, such as a numpy that numba does not know yet; empty where it can."""
    try:
        from raylens.workers.kernels import compiled, epilogue  # noqa: F401
    except ImportError as error:
        return named_line(error)
    return "NUMBA_DISABLE_JIT is set" if compiled.is_off() else ""


def is_compiled() -> bool:
    """Whether numba is here and works."""
    return not not_compiled()


def may_compile(device: torch.device, k: int) -> bool:
    """Whether rows on the device can be read out by compiled code."""
    return device.type == "cpu" and k <= MOST_KEPT and is_compiled()


def block_size(rows: int, device: torch.device, k: int) -> int:
    """How many vocabulary entries a block of that many rows should have; few rows are multiplied at one go."""
    if may_compile(device, k):
        return max(PIECE, COMPILED_LOGITS // max(1, rows) // PIECE * PIECE)
    return max(256, PLAIN_LOGITS // max(1, rows))


class States:
    """The states of N rows that the kernels update (kernels/epilogue.py).

    Attributes:
        statistics: [N, 3] float64.
        values: [N, K] float32.
        ids: [N, K] int64.
    """

    def __init__(self, rows: int, k: int) -> None:
        self.statistics = np.zeros((rows, 3))
        # not minus infinity, whose difference from itself is not a number
        self.statistics[:, 0] = np.finfo(np.float32).min
        self.values = np.empty((rows, k), dtype=np.float32)
        self.ids = np.empty((rows, k), dtype=np.int64)

    def finish(self, seen: int, tally: Tally) -> Readout:
        """The result, once ``seen`` tokens, the whole vocabulary, are in."""
        values, ids = (torch.from_numpy(kept[:, :seen]) for kept in (self.values, self.ids))
        maximum, total, weighted = torch.from_numpy(self.statistics).unbind(1)
        return finished(values, ids, maximum, total, weighted, tally)


class CompiledReadout:
    """What RunningReadout does, in one compiled pass over each block, on the CPU."""

    def __init__(self, rows: int, k: int, tally: Tally | None = None) -> None:
        self._states = States(rows, k)
        self._tally = nothing_asked(rows, torch.device("cpu")) if tally is None else tally
        self._first = 0

    def add(self, logits: Tensor, weights: Tensor | None = None) -> None:
        """Take in the next block, [N, B] float32, and what the tally makes of the final layer's logits of that block."""
        from raylens.workers.kernels.epilogue import take_block

        states, shares = self._states, NO_WEIGHTS if weights is None else weights.numpy()
        block = logits.contiguous().numpy()
        take_block(block, self._first, states.statistics, states.values, states.ids, shares, *self._tally.arrays())
        self._first += logits.shape[1]

    def finish(self) -> Readout:
        """The result, once all blocks are in."""
        return self._states.finish(self._first, self._tally)


#: The final layer's probabilities where no distance to them is asked.
NO_WEIGHTS = np.empty((0, 0), dtype=np.float32)


def running_readout(rows: int, k: int, device: torch.device, tally: Tally | None = None) -> RunningReadout | CompiledReadout:
    """The fastest form that can read such rows."""
    return CompiledReadout(rows, k, tally) if may_compile(device, k) else RunningReadout(rows, k, device, tally)
