"""What models do to logits after the head: nothing, a soft cap, a factor or a divisor, read from known config fields."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raylens.workers.blocks import numbers

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


def identity(logits: Tensor) -> Tensor:
    """Nothing."""
    return logits


def _softcap(logits: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(logits / cap)


def _scale(logits: Tensor, factor: float) -> Tensor:
    return logits * factor


def candidate_steps(config: Any) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Name and function of each step the configuration allows; the right one is found by comparing logits."""
    holders = (config, config.get_text_config())
    yield "nothing", identity
    for value in numbers(holders, _SOFTCAPS):
        yield f"softcap {value:g}", partial(_softcap, cap=value)
    for value in numbers(holders, _FACTORS):
        yield f"x {value:g}", partial(_scale, factor=value)
    for value in numbers(holders, _DIVISORS):
        yield f"/ {value:g}", partial(_scale, factor=1 / value)
