"""What to run for hidden states: the model's body where that gives what the whole model gives; for padded batches too."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError, named_line
from raylens.workers.blocks import first_tensor, flat_rows
from raylens.workers.tolerances import apart, of_rows, rounding

#: Tokens of the shorter prompts in the batch that is compared.
_SHORT = (1, 2, 3, 5, 8)


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
    # a prompt and its own beginnings: in a causal model all must come out as the prompt did alone
    lengths = torch.tensor([ids.shape[1], *_SHORT])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(ids)
    batch = ids * mask
    spacing = rounding(model)  # batches of other shapes are rounded otherwise
    allowed = of_rows(spacing)
    problem = ""
    bodies = [module for module in (model.base_model, owner) if module is not model]  # Llama-4 text is its own base_model
    for module in (*bodies, model):
        found = _last_output(module, last_block, batch, mask)
        if isinstance(found, str):
            problem = f"it fails on a padded batch ({found})"
            continue
        error = _off(found.view(len(batch), *expected.shape), expected, lengths, spacing)
        if error <= allowed:
            return Trunk(module, error, allowed)
        problem = f"a prompt in a padded batch does not give what it gives alone (off by {error:.1e}, allowed {allowed:.1e})"
    raise ModelError(f"{type(model).__name__}: {problem}; only causal models that take an attention mask are supported")


def _off(found: Tensor, expected: Tensor, lengths: Tensor, spacing: float) -> float:
    """How far [B, T, D] rows of a batch are from [T, D] of the prompt alone: of the whole prompt, of its beginnings, and of the
    last tokens of these, which stand before padding: a model that looks ahead sees other tokens there.
    """
    whole, *beginnings = [rows[:length] for rows, length in zip(found, lengths, strict=True)]
    pairs = [
        (whole, expected),
        (torch.cat(beginnings), torch.cat([expected[: len(rows)] for rows in beginnings])),
        (torch.stack([rows[-1] for rows in beginnings]), torch.stack([expected[len(rows) - 1] for rows in beginnings])),
    ]
    return float(torch.stack([apart(*pair, spacing) for pair in pairs]).max())


def _last_output(module: nn.Module, last_block: nn.Module, ids: Tensor, mask: Tensor) -> Tensor | str:
    """[B*T, D] what the last block gives when the module runs; a reason if the module cannot run so."""
    outputs: list[Tensor | None] = []
    hook = last_block.register_forward_hook(lambda _module, _args, output: outputs.append(first_tensor(output)))
    try:
        module(input_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:  # noqa: BLE001  it needs what the whole model makes for it, and may miss that in any way
        return named_line(error)
    finally:
        hook.remove()
    rows = flat_rows(outputs[0]).cpu() if len(outputs) == 1 and outputs[0] is not None else torch.empty(0)
    return rows if len(rows) == ids.numel() else f"its last block gave {len(rows)} rows for {ids.numel()} tokens"
