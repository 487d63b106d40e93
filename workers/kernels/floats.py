"""Array types and constants that kernels share."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

ZERO, ONE = np.float32(0.0), np.float32(1.0)
#: Logits of a row that are taken at once: they are read several times, from the first cache.
PIECE = 1024

FUSED = frozenset({"contract"})
#: Sums may be added in any order; nothing else is loosened.
ANY_ORDER = frozenset({"contract", "reassoc"})
