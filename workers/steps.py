"""What models do to logits after the head: nothing, a soft cap, a factor or a divisor, read from known config fields."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


def _identity(logits: Tensor) -> Tensor:
    return logits


def _softcap(logits: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(logits / cap)


def _scale(logits: Tensor, factor: float) -> Tensor:
    return logits * factor


def candidate_steps(config: Any) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Name and function of each step the configuration allows; the right one is found by comparing logits."""
    yield "nothing", _identity
    for name in _SOFTCAPS:
        if value := _number(config, name):
            yield f"softcap {value:g}", partial(_softcap, cap=value)
    for name in _FACTORS:
        if value := _number(config, name):
            yield f"x {value:g}", partial(_scale, factor=value)
    for name in _DIVISORS:
        if value := _number(config, name):
            yield f"/ {value:g}", partial(_scale, factor=1 / value)


def _number(config: Any, name: str) -> float:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else 0.0
