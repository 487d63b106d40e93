"""From hidden rows to logits: the model's own final norm, unembedding and whatever follows it, in float32, block by block.

Shapes: N rows, D width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn

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

    Weights are used where they are: tied, offloaded and quantised heads are called, never copied.
    """

    def __init__(self, norm: nn.Module, head: nn.Module, step: Step) -> None:
        self._norm = _float32(norm)
        self._head = head
        self._step = step
        self._sliceable = type(head) is nn.Linear and head.weight.is_floating_point() and not _offloaded(head)

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
        if self._sliceable:
            yield from self._sliced_blocks(rows)
        else:
            normed = self._norm(rows.float() if _is_float32(self._norm) else rows)
            whole = self._head(normed.to(_dtype_of(self._head, normed.dtype)))
            for block in whole.split(BLOCK, dim=1):
                yield self._step(block.float())

    def _sliced_blocks(self, rows: Tensor) -> Iterator[Tensor]:
        weight, bias = self._head.weight, self._head.bias
        assert isinstance(weight, Tensor)
        normed = self._norm(rows.to(_device_of(self._norm, rows)).float()).to(weight.device)
        for start in range(0, weight.shape[0], BLOCK):
            part = slice(start, start + BLOCK)
            yield self._step(F.linear(normed, weight[part].float(), bias[part].float() if isinstance(bias, Tensor) else None))


def _float32(norm: nn.Module) -> nn.Module:
    """The norm computing in float32: itself, or a copy where its few weights are of a shorter type."""
    if _offloaded(norm) or _is_float32(norm):
        return norm
    plain: nn.Module = remove_hook_from_module(copy.deepcopy(norm))
    return plain.float()


def _offloaded(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)  # accelerate's, under a device map
    return bool(getattr(hook, "offload", False)) or any(parameter.is_meta for parameter in module.parameters())


def _is_float32(module: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in module.parameters())


def _dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    weight = getattr(module, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else default


def _device_of(module: nn.Module, rows: Tensor) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), rows.device)
