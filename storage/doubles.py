"""Which ids more than one prompt has: in a store every prompt is found by its id, so of two one would never be seen."""

from array import array

import numpy as np
from numpy.typing import NDArray

from raylens.storage.ledger import Entry


class Ids:
    """The ids of entries by 64-bit hashes, 16 bytes a prompt. That two of a million share one is a chance of 1 in 37 million."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._indexes = array("q")

    def add(self, entry: Entry) -> None:
        """Take one more."""
        self._hashes.append(hash(entry.id))
        self._indexes.append(entry.index)

    def doubled(self) -> frozenset[int]:
        """Hashes of the ids that prompts of different indexes have; one prompt that came twice is none."""
        hashes: NDArray[np.int64] = np.array(self._hashes, np.int64)
        indexes: NDArray[np.int64] = np.array(self._indexes, np.int64)
        order = np.lexsort((indexes, hashes))
        hashes, indexes = hashes[order], indexes[order]
        repeated = hashes[1:][(hashes[1:] == hashes[:-1]) & (indexes[1:] != indexes[:-1])]
        return frozenset(repeated.tolist())
