"""From hidden rows to logits: the model's own final norm, unembedding and whatever follows it, in float32, block by block.

Shapes: N rows, D width, V vocabulary.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from raylens.workers.after_head import AfterHead
from raylens.workers.asked import Asked, Tally
from raylens.workers.blocks import device_of
from raylens.workers.logits import Logits, SlicedLogits, WholeLogits
from raylens.workers.product import MOST_ROWS, Unembedding, is_plain_linear
from raylens.workers.running import MOST_FUSED, block_size, not_compiled, running_readout
from raylens.workers.threads import each, shares
from raylens.workers.topk import Readout, joined

#: Most bytes of the final layer's probabilities that the Triton kernel is handed at once.
FINAL_BYTES = 128 << 20


class Projection:
    """The read-out of one model.

    Args:
        norm: the final norm.
        head: the output embedding.
        step: what the model does to the logits after the head (softcap, scale); elementwise.

    Attributes:
        norm, head, step: as given, the norm in float32.
        unembedding: makes products with the head, if that is a plain linear layer.
        fused: whether the Triton kernel reads what it can read; set where it was seen to be right and faster (fused.py).

    A plain linear head is multiplied in float32, block by block, from its weights where they are, tied or offloaded; any
    other, such as a quantised one, is called. Only the norm's few weights are copied, where they are offloaded or short.
    """

    def __init__(self, norm: nn.Module, head: nn.Module, step: AfterHead) -> None:
        self.norm = in_float32(norm)
        self.head = head
        self.step = step
        self.unembedding = Unembedding(head) if is_plain_linear(head) else None
        self.fused = False

    def path(self, k: int) -> str:
        """How logits are computed where k tokens are kept, for the certificate."""
        if self.fused and k <= MOST_FUSED:
            return "one Triton kernel, float32 sums, two terms of each row where weights are short"
        if self.unembedding is None:
            return "the head's own product, then float32"
        if self.unembedding.terms:
            return "product by vocabulary block of two terms of each row, float32 sums"
        ours = f", by {self.unembedding.laid_out.kernel.name}" if self.unembedding.laid_out is not None else ""
        cpu = device_of(self.head, self.unembedding.head.weight.device).type == "cpu"
        slow = f", not compiled ({why})" if cpu and (why := not_compiled()) else ""
        return f"float32 product by vocabulary block{ours}{slow}"

    def read(self, rows: Tensor, k: int, asked: Asked | None = None) -> Readout:
        """The k best tokens, logsumexp and entropy of each of [N, D] rows, and what else is asked of them.

        Memory does not grow with N beyond the result.
        """
        if self.fused and k <= MOST_FUSED:
            return self._read_fused(rows, k, asked)
        workers = self.unembedding.workers(len(rows), len(rows)) if rows.device.type == "cpu" and self.unembedding else 1
        most = (self.unembedding.most_rows if self.unembedding else MOST_ROWS) * workers
        chunks = shares(len(rows), max(1, -(-len(rows) // most)) * workers)
        with self._weights():
            return joined(each(lambda chunk: self._read_chunk(rows[chunk], k, asked and asked.part(chunk)), chunks, workers))

    def logits(self, rows: Tensor) -> Tensor:
        """Whole logits, [N, V] float32; for the certificate and for tests."""
        with self._weights(), torch.inference_mode():
            return self._whole(rows)

    def _whole(self, rows: Tensor) -> Tensor:
        return torch.cat([block.clone() for block in self._logits(rows).blocks(block_size(len(rows), rows.device, 1))], dim=1)

    def try_faster(self, rows: Tensor) -> None:
        """Let a plain head's products be made a faster way where there is one, tried on [N, D] hidden rows of the model."""
        if self.unembedding:
            self.unembedding.try_faster(self._normed(rows))

    def _weights(self) -> AbstractContextManager[object]:
        """While open, offloaded weights of a plain head are in memory; any other head sees to its own."""
        return align_module_device(self.head) if self.unembedding else nullcontext()

    @torch.inference_mode()
    def _read_fused(self, rows: Tensor, k: int, asked: Asked | None) -> Readout:
        from raylens.workers.kernels.triton_readout import readout

        with self._weights():
            weight, bias = self.head.weight, self.head.bias
            assert isinstance(weight, Tensor)
            read = partial(readout, weight=weight, bias=bias if isinstance(bias, Tensor) else None, step=self.step, k=k)
            if asked is None:
                return read(self._normed(rows))
            parts = asked.parts(max(1, FINAL_BYTES // (4 * len(weight))))
            return joined([self._compared(read, rows[part], asked.part(part)) for part in parts])

    def _compared(self, read: Callable[..., Readout], rows: Tensor, asked: Asked) -> Readout:
        logits = self._logits(rows)
        tally = Tally(asked, logits.of(asked.targets))
        if asked.final is None:
            return read(logits.rows, tally=tally)
        return read(logits.rows, tally=tally, probabilities=tally.weights(self._whole(asked.final.rows)))

    @torch.inference_mode()  # the caller's own mode does not reach another thread
    def _read_chunk(self, rows: Tensor, k: int, asked: Asked | None) -> Readout:
        final = asked.final if asked else None
        # the final layer's rows go through the same product as those that are compared with it; a residual may be of a wider type
        logits = self._logits(rows if final is None else torch.cat([rows, final.rows.to(rows.device)]))
        device, count = device_of(self.head, device_of(self.norm, rows.device)), len(rows)
        tally = Tally(asked, logits.of(asked.targets)) if asked else None
        running = running_readout(count, k, device, tally)
        for block in logits.blocks(block_size(len(rows), device, k)):
            running.add(block[:count], tally.weights(block[count:]) if tally else None)
        return running.finish()

    def _normed(self, rows: Tensor) -> Tensor:
        """[N, D] float32 after the norm, on the head's device."""
        normed: Tensor = self.norm(rows.to(device_of(self.norm, rows.device)).float())
        return normed.to(device_of(self.head, normed.device))

    def _logits(self, rows: Tensor) -> Logits:
        normed = self._normed(rows)
        if self.unembedding:
            return SlicedLogits(normed, self.unembedding, self.step)
        return WholeLogits(normed, self.head, self.step)


def in_float32(norm: nn.Module) -> nn.Module:
    """The norm itself where it computes in float32 from weights in memory, else a copy that does."""
    plain = all(parameter.dtype == torch.float32 and not parameter.is_meta for parameter in norm.parameters())
    return norm if plain else _copied(norm)


def _copied(norm: nn.Module) -> nn.Module:
    """A copy of the norm in float32, without accelerate's hook, which would take every offloaded weight of the model along."""
    hooks = [hook for module in norm.modules() if (hook := getattr(module, "_hf_hook", None)) is not None]
    with align_module_device(norm):
        plain = copy.deepcopy(norm, {id(hook): None for hook in hooks})
    for module in plain.modules():
        if module.__dict__.pop("_hf_hook", hooks) is not hooks:  # there was one, and it had replaced forward
            del module.forward, module._old_forward
    return plain.float()
