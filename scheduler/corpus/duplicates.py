"""Finding duplicate ids among millions with 8 bytes a prompt."""

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: Suspect hashes looked at in one pass over the corpus; bounds memory when a whole corpus is doubled.
_SUSPECTS = 1 << 16


class IdHashes:
    """The 64-bit hash of every id seen, and which hashes came more than once."""

    __slots__ = ("_hashes", "add")

    def __init__(self) -> None:
        self._hashes = array("q")
        self.add = self._hashes.append

    def suspects(self) -> Iterator[frozenset[int]]:
        """Hashes that came more than once, in sets of bounded size. Sorts in place: add nothing afterwards."""
        hashes: NDArray[np.int64] = np.frombuffer(self._hashes, dtype=np.int64) if self._hashes else np.empty(0, np.int64)
        hashes.sort()
        repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        for start in range(0, len(repeated), _SUSPECTS):
            yield frozenset(repeated[start : start + _SUSPECTS].tolist())
