"""Hooks that put other rows in place of a module's, so that everything after it in the model reads those."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raylens.workers.blocks import first_tensor, flat_rows, input_tensor

#: [N, D] rows -> [N, D] what they become.
Change = Callable[[Tensor], Tensor]
Remove = Callable[[], None]


def change_output(module: nn.Module, rows: Tensor, change: Change) -> Remove:
    """Change rows of what a module gives; of a tuple, its first tensor."""

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        return _with_first(output, _changed(first_tensor(output), rows, change))

    return module.register_forward_hook(after).remove


def change_input(module: nn.Module, rows: Tensor, change: Change) -> Remove:
    """Change rows of what a module takes."""

    def before(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        changed = _changed(input_tensor(args, kwargs), rows, change)
        return (_with_first(args, changed), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return module.register_forward_pre_hook(before, with_kwargs=True).remove


def change_sum(block: nn.Module, module: nn.Module, scale: float, rows: Tensor, change: Change) -> Remove:
    """Change rows of what a block has once a module's output, times the scale, is added to its input.

    No module gives that sum, so the module's output is made to lead to it. Hooks that read the output see what it was, for this
    one enters after them.
    """

    entered: list[Remove] = []

    def before(_block: nn.Module, args: Any, kwargs: Any) -> None:
        start = flat_rows(_found(input_tensor(args, kwargs)))

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            entered.pop()()
            return _with_first(output, _changed(first_tensor(output), rows, towards))

        def towards(found: Tensor) -> Tensor:
            # rounded as the block itself will
            total = start.index_select(0, rows.to(start.device)).to(found.device) + found * scale
            return wide(found) + (wide(change(total)) - wide(total)) / scale

        entered.append(module.register_forward_hook(after).remove)

    entered_before = block.register_forward_pre_hook(before, with_kwargs=True).remove

    def remove() -> None:
        for one in (entered_before, *entered):
            one()

    return remove


def _changed(hidden: Tensor | None, rows: Tensor, change: Change) -> Tensor:
    hidden = _found(hidden)
    flat, at = flat_rows(hidden), rows.to(hidden.device)
    # a copy: others may hold the tensor that the module gave
    return flat.index_copy(0, at, change(flat.index_select(0, at)).to(hidden.dtype)).view(hidden.shape)


def _found(hidden: Tensor | None) -> Tensor:
    if hidden is None:
        raise RuntimeError("a module that is edited gave no hidden state")
    return hidden


def _with_first(value: Any, changed: Tensor) -> Any:
    """The value with another tensor where ``first_tensor`` finds one."""
    if isinstance(value, Tensor):
        return changed
    parts = (_with_first(value[0], changed), *value[1:])
    return value._make(parts) if hasattr(value, "_make") else type(value)(parts)


def wide(rows: Tensor) -> Tensor:
    """The rows in a type in which sums are rounded no worse than float32's."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
