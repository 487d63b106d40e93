"""Running a model token by token with transformers' own ``generate``, which knows the caches and paddings of each family.

Shapes: B prompts, T tokens of the longest, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from raylens.storage.errors import ModelError
from raylens.workers.blocks import input_device
from raylens.workers.capture import Sink, Sites, capture
from raylens.workers.interventions.intervention import Intervention
from raylens.workers.interventions.places import Span

#: Given [B, V] float32 logits and the number of the step, the ids of the next tokens, [B]. Called once a step.
Choose = Callable[[Tensor, int], list[int]]


@dataclass(frozen=True, slots=True)
class Way:
    """How the model is run.

    Attributes:
        padded: whether prompts of different lengths may be in one batch, padded on the left.
        cached: whether a step reads only the newest token and a cache of the others; else it reads all anew.
    """

    padded: bool
    cached: bool

    def __str__(self) -> str:
        together = "prompts of different lengths together" if self.padded else "only prompts of one length together"
        return f"{'one token a step, from a cache' if self.cached else 'the whole text anew at each step'}; {together}"


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Has ``generate`` take the tokens that are chosen elsewhere: they alone have a logit."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  called so by transformers
        ids = torch.tensor(self._choose(scores, self._step), device=scores.device)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, ids.unsqueeze(1), 0.0)


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a sequence.

    Raises:
        ModelError: the checkpoint names something else.
    """
    asked = model.generation_config.eos_token_id if model.generation_config is not None else None
    given = tokenizer.eos_token_id if asked is None else asked
    ends = given if isinstance(given, list | tuple) else [] if given is None else [given]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end.bit_length() < 64 for end in ends):
        raise ModelError(f"generation_config.json of the model: eos_token_id is {given!r}; it must be an id, or a list of ids")
    return tuple(ends)


@contextmanager
def _without_wishes(model: Any) -> Iterator[None]:
    """Checkpoints bring temperatures, penalties and forced tokens, which ``generate`` would apply where nothing is said."""
    wishes, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = wishes


@torch.inference_mode()
def run_steps(
    model: Any,
    way: Way,
    prompts: Sequence[list[int]],
    tokens: int,
    ends: tuple[int, ...],
    choose: Choose,
    sites: Sites | None = None,
    sink: Sink = lambda _tap, _layer, _rows: None,
    intervention: Intervention | None = None,
) -> None:
    """Generate up to ``tokens`` tokens after each prompt.

    Args:
        model: whose own wishes for how its text is generated are left aside.
        ends: ids after which a prompt is done; its rows and logits are given on, and mean nothing, until all are done.
        sites, sink: as of ``capture``; the rows are those of each prompt's newest token, [B, D], before ``choose`` is called.
        intervention: what is changed in the model while it runs.
    """
    ids, mask = _left_padded(prompts, input_device(model))
    lengths, step = [len(prompt) for prompt in prompts], 0

    def enter(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal step
        columns = kwargs["input_ids"].shape[1]
        newest = torch.arange(1, len(prompts) + 1, device=kwargs["input_ids"].device) * columns - 1
        # the pass ends with each sequence's newest token, as all are padded on the left
        spans = [Span(length, length + step - columns, length + step) for length in lengths]
        step += 1
        entered.close()
        if intervention is not None:
            entered.enter_context(intervention.during(spans, columns))
        entered.enter_context(capture(sites or {}, lambda: newest, sink))

    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=way.cached,
        pad_token_id=0,
        eos_token_id=list(ends) or None,
        disable_compile=True,  # compiled code passes by the hooks
    )
    with _without_wishes(model), ExitStack() as entered:  # what is entered for one pass ends where the next begins
        seeing = model.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            model.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([_Chooser(choose)]),
            )
        finally:
            seeing.remove()


def _left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, T] ids and mask. The padding id is 0: masked, it is never read."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, longest - len(prompt) :] = torch.tensor(prompt)
        mask[number, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
