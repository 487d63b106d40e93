"""How a model may be run token by token, measured: its steps must give what whole passes over the same tokens give."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raylens.storage.errors import ModelError, named_line
from raylens.workers.blocks import input_device
from raylens.workers.probe import probe_ids
from raylens.workers.stepping import Way, run_steps
from raylens.workers.tolerances import apart, of_rows, rounding

#: Tokens of the shorter prompt, and steps that are tried.
_SHORT, _STEPS = 1, 4
#: The best way first.
_WAYS = (Way(padded=True, cached=True), Way(padded=False, cached=True), Way(padded=False, cached=False))


@dataclass(frozen=True, slots=True)
class Steps:
    """The way that was found.

    Attributes:
        way: how to run the model.
        error: of its logits for the prompt that is further off (tolerances.apart), and
        allowed: how large it may be.
    """

    way: Way
    error: float
    allowed: float


@torch.inference_mode()
def find_way(model: Any) -> Steps:
    """The fastest way that is right.

    Raises:
        ModelError: none is.
    """
    ids = probe_ids(model)[0].tolist()
    long, short, forced = ids[:-_STEPS], ids[:_SHORT], ids[-_STEPS:]
    wanted = [_whole(model, prompt + forced, len(prompt)) for prompt in (long, short)]
    spacing = rounding(model)  # steps are of other shapes than whole passes, and so rounded otherwise
    allowed = of_rows(spacing)
    problem = ""
    for way in _WAYS:
        try:
            if way.padded:
                found = _steps(model, way, [long, short], forced)
            else:
                found = torch.cat([_steps(model, way, [prompt], forced) for prompt in (long, short)])
        except Exception as failed:  # noqa: BLE001  a model may raise anything
            problem = named_line(failed)
            continue
        error = float(torch.stack([apart(*pair, spacing) for pair in zip(found, wanted, strict=True)]).max())
        if error <= allowed:
            return Steps(way, error, allowed)
        problem = f"off by {error:.1e}, allowed {allowed:.1e}"
    raise ModelError(
        f"--generate: {type(model).__name__} does not give token by token what it gives in one pass ({problem}); "
        "generate with another program and lens prompts with the text"
    )


def _whole(model: Any, ids: list[int], prompt: int) -> Tensor:
    """[S, V] the logits of one pass at the last token of the prompt and after."""
    given = torch.tensor([ids], device=input_device(model))
    logits: Tensor = model(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False).logits
    return _finite(logits[0, prompt - 1 : -1])


def _steps(model: Any, way: Way, prompts: list[list[int]], forced: list[int]) -> Tensor:
    """[B, S, V] the logits of each step."""
    seen: list[Tensor] = []

    def choose(logits: Tensor, step: int) -> list[int]:
        seen.append(_finite(logits))
        return [forced[step]] * len(prompts)

    run_steps(model, way, prompts, len(forced), (), choose)
    return torch.stack(seen, dim=1)


def _finite(logits: Tensor) -> Tensor:
    """In float64 on the CPU; tokens that a bias of minus infinity rules out count as 0."""
    values = logits.detach().to("cpu", torch.float64)
    return torch.where(values.isneginf(), 0.0, values)
