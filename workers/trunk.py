"""What to run for hidden states: the model's body where that gives what the whole model gives; for padded batches too."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.workers.blocks import first_tensor, flat_rows
from raylens.workers.tolerances import apart, of_rows, rounding

#: Tokens of the shorter prompt in the batch that is compared.
_SHORT = 5


@dataclass(frozen=True, slots=True)
class Trunk:
    """What to run, and how far its last block's output in a padded batch was from that of the model and one prompt.

    Attributes:
        module: takes ``input_ids``, ``attention_mask`` and ``use_cache``.
        error: of the prompt that is further off (tolerances.apart), and
        allowed: how large it may be.
    """

    module: nn.Module
    error: float
    allowed: float


def find_trunk(model: Any, owner: nn.Module, last_block: nn.Module, ids: Tensor, expected: Tensor) -> Trunk:
    """The least that must run; the head over a whole prompt is wasted work.

    Args:
        model: the model.
        owner: the module that holds the block stack.
        last_block: the last of the stack.
        ids: [1, T] the probe prompt.
        expected: [T, D] what the last block gave for it in the model.

    Raises:
        ModelError: a prompt in a padded batch does not get what it gets alone.
    """
    # a prompt and its own beginning: in a causal model both must come out as the prompt did alone
    batch = ids.repeat(2, 1)
    batch[1, _SHORT:] = 0
    mask = torch.ones_like(batch)
    mask[1, _SHORT:] = 0
    spacing = rounding(model)  # batches of other shapes are rounded otherwise
    allowed = of_rows(spacing)
    error = float("inf")
    bodies = [module for module in (model.base_model, owner) if module is not model]  # Llama-4 text is its own base_model
    for module in (*bodies, model):
        found = _last_output(module, last_block, batch, mask)
        if found is not None and found.shape[0] == batch.numel():
            whole, short = found[: len(expected)], found[len(expected) :][:_SHORT]
            errors = apart(whole, expected, spacing), apart(short, expected[:_SHORT], spacing)
            error = float(torch.stack(errors).max())
            if error <= allowed:
                return Trunk(module, error, allowed)
    raise ModelError(
        f"{type(model).__name__}: a prompt in a padded batch does not give what it gives alone (off by {error:.1e}, "
        f"allowed {allowed:.1e}); only causal models that take an attention mask are supported"
    )


def _last_output(module: nn.Module, last_block: nn.Module, ids: Tensor, mask: Tensor) -> Tensor | None:
    """[B*T, D] what the last block gives when the module runs; None if the module cannot run so."""
    outputs: list[Tensor | None] = []
    hook = last_block.register_forward_hook(lambda _module, _args, output: outputs.append(first_tensor(output)))
    try:
        module(input_ids=ids, attention_mask=mask, use_cache=False)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it needs what the whole model makes for it
        return None
    finally:
        hook.remove()
    return flat_rows(outputs[0]).cpu() if len(outputs) == 1 and outputs[0] is not None else None
