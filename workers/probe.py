"""One forward pass over a few tokens that records what goes in and out of every block and its named parts."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError, named_line
from raylens.workers.blocks import ATTENTION_NAMES, MLP_NAMES, first_tensor, flat_rows, input_device, input_tensor, submodules

_PROBE_TOKENS = 13


@dataclass(slots=True)
class BlockProbe:
    """What one block did. T probe tokens, D width; all on the CPU, in the model's own type.

    Attributes:
        layer: number of the block.
        input, output: [T, D] residual before and after it.
        outputs: candidate module -> [T, D] its output.
        inputs: child module -> [T, D] its input.
        calls: how often each of these ran, the block itself under "".
    """

    layer: int
    input: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def probe_ids(model: Any) -> Tensor:
    """[1, T] token ids spread over the vocabulary."""
    size = int(model.config.get_text_config().vocab_size)
    return torch.linspace(1, size - 1, _PROBE_TOKENS).long().unsqueeze(0).to(input_device(model))


def probe_blocks(model: nn.Module, stack: nn.ModuleList, ids: Tensor) -> tuple[list[BlockProbe], Tensor]:
    """Run the probe; the blocks' records and the model's logits [1, T, V].

    Raises:
        ModelError: the model fails, or a block did not take or give hidden states in a known way, or did not run once.
    """
    probes = [BlockProbe(layer) for layer in range(len(stack))]
    with ExitStack() as hooks:
        for block, probe in zip(stack, probes, strict=True):
            _record(hooks, block, probe)
        try:
            logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        except Exception as error:  # a model may raise anything
            raise ModelError(
                f"{type(model).__name__}: cannot run a prompt of {ids.shape[1]} tokens ({named_line(error)})"
            ) from error
    for probe in probes:
        if probe.calls.get("") != 1:
            times = probe.calls.get("", 0)
            raise ModelError(f"block {probe.layer} ran {times} times in one pass; only stacks that run once are supported")
        if probe.output.shape[:1] != ids.shape[1:]:
            rows, tokens = probe.output.shape[0], ids.shape[1]
            raise ModelError(
                f"block {probe.layer} gives {rows} rows for {tokens} tokens; several residual streams are not supported"
            )
        if probe.input.shape != probe.output.shape:
            raise ModelError(
                f"block {probe.layer} is no residual block: input {tuple(probe.input.shape)}, output {tuple(probe.output.shape)}"
            )
        # a part that runs twice in one pass, or is shared between blocks, cannot be read by one hook
        for name, count in probe.calls.items():
            if count != 1:
                probe.outputs.pop(name, None)
                probe.inputs.pop(name, None)
    return probes, logits


def _record(hooks: ExitStack, block: nn.Module, probe: BlockProbe) -> None:
    def keep_block(_module: nn.Module, _args: Any, output: Any) -> None:
        probe.output = _copy(first_tensor(output))
        probe.calls[""] = probe.calls.get("", 0) + 1

    def keep_block_input(_module: nn.Module, args: Any, kwargs: Any) -> None:
        probe.input = _copy(input_tensor(args, kwargs))

    hooks.callback(block.register_forward_pre_hook(keep_block_input, with_kwargs=True).remove)
    hooks.callback(block.register_forward_hook(keep_block).remove)
    children, candidates = dict(block.named_children()), dict(submodules(block, ATTENTION_NAMES + MLP_NAMES))
    for name, module in (children | candidates).items():
        hooks.callback(module.register_forward_hook(_output_keeper(probe, name, name in candidates)).remove)
    for name, module in children.items():
        hooks.callback(module.register_forward_pre_hook(_input_keeper(probe, name), with_kwargs=True).remove)


def _output_keeper(probe: BlockProbe, name: str, keeps: bool) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        probe.calls[name] = probe.calls.get(name, 0) + 1
        if keeps:
            probe.outputs[name] = _copy(first_tensor(output))

    return keep


def _input_keeper(probe: BlockProbe, name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = input_tensor(args, kwargs)
        if tensor is not None:
            probe.inputs[name] = _copy(tensor)

    return keep


def _copy(tensor: Tensor | None) -> Tensor:
    # copied, because some families change their outputs in place after the hook (Falcon)
    return torch.empty(0) if tensor is None or tensor.dim() == 0 else flat_rows(tensor).to("cpu", copy=True)
