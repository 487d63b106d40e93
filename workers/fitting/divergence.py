"""KL(final || lens) in nats, through the model's own final norm, head and step after the head; rows may carry gradients.

Shapes: N rows, D width, V vocabulary.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.workers.blocks import device_of, dtype_of
from raylens.workers.product import is_plain_linear
from raylens.workers.projection import Projection

#: Entries of one matrix of logits; some five of them are held in training, so 64 MiB each.
_ENTRIES = 1 << 24
#: Of a token that a bias of minus infinity rules out: its probability is 0 too, and 0 times its logprob is a number.
_RULED_OUT = -1e30


class Divergence:
    """Compares rows with the last block's output.

    Args:
        projection: of the model.

    Raises:
        ModelError: the head's weights are kept elsewhere.
    """

    def __init__(self, projection: Projection) -> None:
        head = projection.head
        if any(parameter.is_meta for parameter in (*head.parameters(), *projection.norm.parameters())):
            raise ModelError("the head is offloaded, and lenses are fitted through it; give the model more memory")
        self.device = device_of(head, torch.device("cpu"))
        # what adapt copied for itself cannot be trained through
        self._norm = projection.norm if not _of_inference(projection.norm) else copy.deepcopy(projection.norm)
        self._norm.requires_grad_(requires_grad=False)
        self._head, self._step = head, projection.step
        self._weight = self._bias = None
        if is_plain_linear(head):
            self._weight = head.weight.detach().float()
            self._bias = head.bias.detach().float().clamp(min=_RULED_OUT) if isinstance(head.bias, Tensor) else None

    def chunks(self, count: int) -> Iterator[slice]:
        """Parts of ``count`` rows whose logits fit in memory."""
        size = max(1, _ENTRIES // self._vocabulary())
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def logprobs(self, rows: Tensor) -> Tensor:
        """[N, V] of [N, D] float32 rows on the device."""
        normed = self._norm(rows)
        if self._weight is None:
            logits = self._head(normed.to(dtype_of(self._head, normed.dtype))).float()
        else:
            logits = F.linear(normed, self._weight, self._bias)
        return F.log_softmax(self._step(logits), dim=-1)

    def __call__(self, rows: Tensor, final: Tensor) -> Tensor:
        """[N] of rows, given [N, V] logprobs of the last block's output."""
        return F.kl_div(self.logprobs(rows), final, reduction="none", log_target=True).sum(-1)

    def _vocabulary(self) -> int:
        if self._weight is not None:
            return len(self._weight)
        return int(getattr(self._head, "out_features", 1 << 18))


def _of_inference(module: nn.Module) -> bool:
    return any(parameter.is_inference() for parameter in module.parameters())
