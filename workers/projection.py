"""From hidden rows to logits: the model's own final norm, unembedding and whatever follows it, in float32, block by block.

Shapes: N rows, D width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from torch import Tensor, nn

from raylens.workers.blocks import device_of, dtype_of
from raylens.workers.topk import Readout, RunningReadout

#: Vocabulary entries whose logits exist at once.
BLOCK = 8192
#: Rows read out at once; with BLOCK this bounds the logits in memory to 16 MiB.
ROWS = 512

Step = Callable[[Tensor], Tensor]


class Projection:
    """The read-out of one model.

    Args:
        norm: the final norm.
        head: the output embedding.
        step: what the model does to the logits after the head (softcap, scale); elementwise.

    A plain linear head is multiplied in float32, block by block, from its weights where they are, tied or offloaded; any
    other, such as a quantised one, is called. Only the norm's few weights are copied, where they are offloaded or short.
    """

    def __init__(self, norm: nn.Module, head: nn.Module, step: Step) -> None:
        self._norm = norm if _is_plain_float32(norm) else _copied(norm)
        self._head = head
        self._step = step
        self._sliceable = type(head) is nn.Linear and head.weight.is_floating_point()

    @property
    def path(self) -> str:
        """How logits are computed, for the certificate."""
        return "float32 product by vocabulary block" if self._sliceable else "the head's own product, then float32"

    def read(self, rows: Tensor, k: int) -> Readout:
        """The k best tokens, logsumexp and entropy of each of [N, D] rows; memory does not grow with N beyond the result."""
        parts = [self._read_chunk(chunk, k) for chunk in torch.split(rows, ROWS)]
        return Readout(
            ids=torch.cat([part.ids for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            logsumexp=torch.cat([part.logsumexp for part in parts]),
            entropy=torch.cat([part.entropy for part in parts]),
        )

    def logits(self, rows: Tensor) -> Tensor:
        """Whole logits, [N, V] float32; for the certificate and for tests."""
        return torch.cat(list(self._blocks(rows)), dim=1)

    def _read_chunk(self, rows: Tensor, k: int) -> Readout:
        running: RunningReadout | None = None
        for block in self._blocks(rows):
            running = running or RunningReadout(rows.shape[0], k, block.device)
            running.add(block)
        assert running is not None
        return running.finish()

    @torch.inference_mode()
    def _blocks(self, rows: Tensor) -> Iterator[Tensor]:
        normed = self._norm(rows.to(device_of(self._norm, rows.device)).float())
        normed = normed.to(device_of(self._head, normed.device))
        if self._sliceable:
            with align_module_device(self._head):  # brings offloaded weights in for the while
                yield from self._sliced_blocks(normed)
        else:
            for block in self._head(normed.to(dtype_of(self._head, normed.dtype))).split(BLOCK, dim=1):
                yield self._step(block.float())

    def _sliced_blocks(self, normed: Tensor) -> Iterator[Tensor]:
        weight, bias = self._head.weight, self._head.bias
        assert isinstance(weight, Tensor)
        for start in range(0, weight.shape[0], BLOCK):
            part = slice(start, start + BLOCK)
            yield self._step(F.linear(normed, weight[part].float(), bias[part].float() if isinstance(bias, Tensor) else None))


def _is_plain_float32(norm: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 and not parameter.is_meta for parameter in norm.parameters())


def _copied(norm: nn.Module) -> nn.Module:
    """A copy of the norm in float32, without accelerate's hook, which would take every offloaded weight of the model along."""
    hooks = [hook for module in norm.modules() if (hook := getattr(module, "_hf_hook", None)) is not None]
    with align_module_device(norm):
        plain = copy.deepcopy(norm, {id(hook): None for hook in hooks})
    for module in plain.modules():
        if module.__dict__.pop("_hf_hook", hooks) is not hooks:  # there was one, and it had replaced forward
            del module.forward, module._old_forward
    return plain.float()
