"""One forward pass over a few tokens that records what goes in and out of every block and its named parts."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.workers.blocks import ATTENTION_NAMES, MLP_NAMES, first_tensor, flat_rows, input_tensor, submodules

_PROBE_TOKENS = 13


@dataclass(slots=True)
class BlockProbe:
    """What one block did. T probe tokens, D width.

    Attributes:
        layer: number of the block.
        input, output: [T, D] residual before and after it.
        outputs: candidate module -> [T, D] its output.
        inputs: child module -> [T, D] its input.
    """

    layer: int
    input: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)


def probe_ids(model: Any) -> Tensor:
    """[1, T] token ids spread over the vocabulary."""
    size = int(model.config.get_text_config().vocab_size)
    return torch.linspace(1, size - 1, _PROBE_TOKENS).long().unsqueeze(0).to(model.device)


def probe_blocks(model: nn.Module, stack: nn.ModuleList, ids: Tensor) -> tuple[list[BlockProbe], Tensor]:
    """Run the probe; the blocks' records and the model's logits [1, T, V].

    Raises:
        ModelError: a block did not take or give hidden states in a known way.
    """
    probes = [BlockProbe(layer) for layer in range(len(stack))]
    with ExitStack() as hooks:
        for block, probe in zip(stack, probes, strict=True):
            _record(hooks, block, probe)
        logits = model(input_ids=ids, use_cache=False).logits
    for probe in probes:
        if probe.input.shape != probe.output.shape or probe.input.numel() == 0:
            raise ModelError(
                f"block {probe.layer} is no residual block: input {tuple(probe.input.shape)}, output {tuple(probe.output.shape)}"
            )
    return probes, logits


def _record(hooks: ExitStack, block: nn.Module, probe: BlockProbe) -> None:
    def keep_block(_module: nn.Module, _args: Any, output: Any) -> None:
        probe.output = _copy(first_tensor(output))

    def keep_block_input(_module: nn.Module, args: Any, kwargs: Any) -> None:
        probe.input = _copy(input_tensor(args, kwargs))

    hooks.callback(block.register_forward_pre_hook(keep_block_input, with_kwargs=True).remove)
    hooks.callback(block.register_forward_hook(keep_block).remove)
    for name, module in submodules(block, ATTENTION_NAMES + MLP_NAMES):
        hooks.callback(module.register_forward_hook(_keeper(probe.outputs, name)).remove)
    for name, module in block.named_children():
        hooks.callback(module.register_forward_pre_hook(_input_keeper(probe.inputs, name), with_kwargs=True).remove)


def _keeper(place: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        place[name] = _copy(first_tensor(output))

    return keep


def _input_keeper(place: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = input_tensor(args, kwargs)
        if tensor is not None:
            place[name] = _copy(tensor)

    return keep


def _copy(tensor: Tensor | None) -> Tensor:
    # cloned, because some families change their outputs in place after the hook (Falcon)
    return torch.empty(0) if tensor is None else flat_rows(tensor).clone()
