"""From hidden rows to logits: the model's own final norm, unembedding and whatever follows it, in float32, block by block.

Shapes: N rows, D width, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from raylens.workers.blocks import device_of, dtype_of
from raylens.workers.running import block_size, running_readout
from raylens.workers.steps import AfterHead
from raylens.workers.threads import each, workers_for
from raylens.workers.topk import Readout

#: Rows read out at once by a thread; with the block size this bounds its logits in memory to 16 MiB.
ROWS = 512


class Projection:
    """The read-out of one model.

    Args:
        norm: the final norm.
        head: the output embedding.
        step: what the model does to the logits after the head (softcap, scale); elementwise.

    A plain linear head is multiplied in float32, block by block, from its weights where they are, tied or offloaded; any
    other, such as a quantised one, is called. Only the norm's few weights are copied, where they are offloaded or short.
    """

    def __init__(self, norm: nn.Module, head: nn.Module, step: AfterHead) -> None:
        self._norm = self.norm = norm if _is_plain_float32(norm) else _copied(norm)
        self._head = self.head = head
        self._step = self.step = step
        self._sliceable = type(head) is nn.Linear and head.weight.is_floating_point()

    @property
    def path(self) -> str:
        """How logits are computed, for the certificate."""
        return "float32 product by vocabulary block" if self._sliceable else "the head's own product, then float32"

    def read(self, rows: Tensor, k: int) -> Readout:
        """The k best tokens, logsumexp and entropy of each of [N, D] rows; memory does not grow with N beyond the result."""
        workers = workers_for(len(rows)) if rows.device.type == "cpu" and self._sliceable else 1
        with self._weights():
            parts = each(lambda chunk: self._read_chunk(chunk, k), _chunks(rows, workers), workers)
        return joined(parts)

    def logits(self, rows: Tensor) -> Tensor:
        """Whole logits, [N, V] float32; for the certificate and for tests."""
        with self._weights():
            return torch.cat([block.clone() for block in self._blocks(rows, block_size(len(rows), rows.device, 1))], dim=1)

    def _weights(self) -> AbstractContextManager[object]:
        """While open, offloaded weights of a plain head are in memory; any other head sees to its own."""
        return align_module_device(self._head) if self._sliceable else nullcontext()

    @torch.inference_mode()  # the caller's own mode does not reach another thread
    def _read_chunk(self, rows: Tensor, k: int) -> Readout:
        device = device_of(self._head, device_of(self._norm, rows.device))
        running = running_readout(rows.shape[0], k, device)
        for block in self._blocks(rows, block_size(len(rows), device, k)):
            running.add(block)
        return running.finish()

    @torch.inference_mode()
    def _blocks(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """[N, B] logits of each block of the vocabulary; each is good until the next is asked for."""
        normed = self._norm(rows.to(device_of(self._norm, rows.device)).float())
        normed = normed.to(device_of(self._head, normed.device))
        if self._sliceable:
            yield from self._sliced_blocks(normed, size)
        else:
            for block in self._head(normed.to(dtype_of(self._head, normed.dtype))).split(size, dim=1):
                yield self._step(block.float())

    def _sliced_blocks(self, normed: Tensor, size: int) -> Iterator[Tensor]:
        weight, bias = self._head.weight, self._head.bias
        assert isinstance(weight, Tensor)
        memory = normed.new_empty(len(normed) * min(size, len(weight)))  # one for all blocks
        for start in range(0, weight.shape[0], size):
            part = weight[start : start + size].float()
            logits = memory[: len(normed) * len(part)].view(len(normed), len(part))
            torch.mm(normed, part.T, out=logits)
            if isinstance(bias, Tensor):
                logits += bias[start : start + size].float()
            yield self._step(logits)


def joined(parts: list[Readout]) -> Readout:
    """The read-outs of some rows after others as one."""
    return Readout(
        ids=torch.cat([part.ids for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
        logsumexp=torch.cat([part.logsumexp for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
    )


def _chunks(rows: Tensor, workers: int) -> tuple[Tensor, ...]:
    """Parts of at most ROWS rows, as many for each worker."""
    rounds = max(1, -(-len(rows) // (ROWS * workers)))
    return rows.tensor_split(rounds * workers) if workers > 1 else torch.split(rows, ROWS)


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
