"""What each attention head writes to the residual: its part of what the output projection reads, through that projection alone.

The projection of all heads side by side is the sum of one projection a head (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"). A norm behind it (Gemma-2, OLMo-2) is linear but for a factor a row, which is that of the whole output.
Shapes: N rows, D width, H heads of width d.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raylens.storage.errors import ModelError
from raylens.storage.taps import MAX_HEADS, head_tap
from raylens.workers.adapter import Adapter
from raylens.workers.blocks import device_of, find_stack
from raylens.workers.capture import Site, captured
from raylens.workers.linear import LinearNorm, find_linear_norm
from raylens.workers.probe import probe_ids
from raylens.workers.projection import in_float32
from raylens.workers.sums import gap
from raylens.workers.tolerances import tolerance

#: Modules of a block that are attention over heads, and of these the one that all heads go through.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "attn.attention", "temporal_block")
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense")
#: Where the attention, or else the configuration, keeps the number of heads; and the attention the width of what one gives.
_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_WIDTHS = ("head_dim", "v_head_dim")
#: What norms each head of differential attention (Ye et al., 2024), which is made of two of those that the configuration counts.
_NORM = "groupnorm"


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one block.

    Attributes:
        projection, name: what reads them side by side, and its name in the block.
        count: H.
        scale: on what is added to the residual.
        norm: behind the projection, where there is one.
        error: how far their writes are from attn_out, relative to its terms.
    """

    projection: nn.Module
    name: str
    count: int
    scale: float
    norm: LinearNorm | None = None
    error: float = float("nan")

    @property
    def site(self) -> Site:
        """The hook that gives what each writes, as tap ``head_N``."""
        return Site(self.projection, self.name, reads_input=True, split=self.writes)

    def writes(self, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Tap and [N, D] of each head, given the [N, H * d] that the projection reads."""
        factor, width = self._factor(inputs), inputs.shape[1] // self.count
        sliced = type(self.projection) in (nn.Linear, Conv1D)
        with align_module_device(self.projection) if sliced else nullcontext():  # offloaded weights come once for all heads
            for head in range(self.count):
                yield head_tap(head), self._after(self._alone(inputs, slice(head * width, (head + 1) * width)), factor)

    def biases(self, inputs: Tensor) -> Tensor:
        """[N, D] of what is written, what is no head's."""
        bias = self._project(torch.zeros_like(inputs[:1])).expand(len(inputs), -1)
        written = self._after(bias, self._factor(inputs))
        return written if self.norm is None else written + self.norm.bias * self.scale

    def _alone(self, inputs: Tensor, own: slice) -> Tensor:
        """[N, D] what a head's own part of [N, H * d] is projected to, without the bias."""
        projection: Any = self.projection
        if type(projection) is nn.Linear:
            return inputs[:, own].float() @ projection.weight[:, own].float().T
        if type(projection) is Conv1D:
            return inputs[:, own].float() @ projection.weight[own].float()  # type: ignore[no-any-return]
        alone = torch.zeros_like(inputs)
        alone[:, own] = inputs[:, own]
        return self._project(alone) - self._project(torch.zeros_like(inputs[:1]))

    def _project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.projection.forward(inputs)  # not called: hooks on it would take these rows for the model's
        return projected

    def _factor(self, inputs: Tensor) -> Tensor | None:
        return None if self.norm is None else self.norm.scale(self._project(inputs).float()).unsqueeze(1)

    def _after(self, written: Tensor, factor: Tensor | None) -> Tensor:
        if self.norm is not None and factor is not None:
            written = self.norm.weighted(written.float()) * factor
        return written if self.scale == 1.0 else written * self.scale


@torch.inference_mode()
def find_heads(model: Any, adapter: Adapter, layers: tuple[int, ...]) -> dict[int, Heads]:
    """The heads of each of the layers; their writes, and biases, were seen to sum to attn_out.

    Raises:
        ModelError: a block has no heads that can be told apart; with the reason, and the layers that have.
    """
    if reason := adapter.refused.get("attn_out"):
        raise ModelError(f"--heads: heads are parts of attn_out, which cannot be read: {reason}")
    _, stack = find_stack(model)
    candidates = [dict(_candidates(block)) for block in stack]
    sites = {(name, layer): site for layer, named in enumerate(candidates) for name, site in named.items()}
    sites |= {("attn_out", layer): block["attn_out"] for layer, block in enumerate(adapter.sites)}
    rows = captured(adapter.trunk, probe_ids(model), sites)
    found: list[Heads | str] = []
    for layer, block in enumerate(stack):
        inputs = {name: rows[name, layer] for name in candidates[layer] if (name, layer) in rows}
        found.append(_measure(model, block, sites["attn_out", layer], inputs, rows["attn_out", layer]))
    heads = {layer: one for layer, one in enumerate(found) if isinstance(one, Heads)}
    for layer in layers:
        if layer not in heads:
            remedy = f"choose from layers {', '.join(map(str, heads))}" if heads else "leave it out"
            raise ModelError(f"--heads: block {layer}: {found[layer]}; {remedy}")
    return {layer: heads[layer] for layer in layers}


def certificate_of(heads: Mapping[int, Heads]) -> dict[str, Any]:
    """What was measured, for the run's certificate."""
    return {
        "layers": list(heads),
        "count": max(one.count for one in heads.values()),
        "hooked": sorted({str(one.site) for one in heads.values()}),
        "error": max(one.error for one in heads.values()),
    }


def _candidates(block: nn.Module) -> Iterator[tuple[str, Site]]:
    """Name and input of each module that all heads of an attention may go through."""
    for name, module in block.named_modules():
        attention, _, own = name.rpartition(".")
        if attention in _ATTENTION and own in _OUTPUTS:
            yield name, Site(module, name, reads_input=True)


def _measure(model: Any, block: nn.Module, site: Site, read: dict[str, Tensor], written: Tensor) -> Heads | str:
    """The heads of a block, or why there are none.

    Args:
        site: of attn_out.
        read: candidate projection -> [T, H * d] what it reads.
        written: [T, D] attn_out.
    """
    reason = "its attn_out is written by no attention over heads"
    for name, inputs in read.items():
        attention, projection = block.get_submodule(name.rpartition(".")[0]), block.get_submodule(name)
        count = _count(attention, model.config.get_text_config(), inputs.shape[1])
        if count is None:
            reason = f"the number of heads in the {inputs.shape[1]} that {name} reads is not told by the configuration"
            continue
        heads = Heads(projection, name, count, site.scale)
        if projection not in set(site.module.modules()):
            norm = in_float32(site.module)
            projected = projection.forward(inputs).float()
            heads = replace(heads, norm=find_linear_norm(norm, projected.to(device_of(norm, projected.device))))
        terms = [*(rows for _, rows in heads.writes(inputs)), heads.biases(inputs)]
        error = gap(terms, written)
        if error <= tolerance(*terms, written):
            return replace(heads, error=error)
        reason = f"what the heads of {name} write is off by {error:.1e} from attn_out"
    return reason


def _count(attention: nn.Module, config: object, width: int) -> int | None:
    """The number of heads, where it and the width of one agree with what is read."""
    if (norm := getattr(attention, _NORM, None)) is not None:
        return width // int(norm.normalized_shape[-1])
    given = [getattr(holder, name, None) for holder in (attention, config) for name in _COUNTS]
    widths = [value for name in _WIDTHS if isinstance(value := getattr(attention, name, None), int)]
    for count in given:
        if isinstance(count, int) and 0 < count <= MAX_HEADS and width % count == 0 and (width // count in widths or not widths):
            return count
    return None
