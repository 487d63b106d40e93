"""What models do to logits after the head: nothing, a soft cap, a factor or a divisor, read from known config fields."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raylens.workers.blocks import numbers

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier", "logits_scaling")  # HyperCLOVA X multiplies by what Granite divides by
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")


@dataclass(frozen=True, slots=True)
class AfterHead:
    """The step after the head: times the factor, then capped softly unless the cap is 0."""

    factor: float = 1.0
    cap: float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Of logits of any shape; the same tensor where there is nothing to do."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


identity = AfterHead()


def candidate_steps(config: Any) -> Iterator[tuple[str, AfterHead]]:
    """Name and function of each step the configuration allows; the right one is found by comparing logits."""
    holders = (config, config.get_text_config())
    yield "nothing", identity
    for value in numbers(holders, _SOFTCAPS):
        yield f"softcap {value:g}", AfterHead(cap=value)
    for value in numbers(holders, _FACTORS):
        yield f"x {value:g}", AfterHead(factor=value)
    for value in numbers(holders, _DIVISORS):
        yield f"/ {value:g}", AfterHead(factor=1 / value)
