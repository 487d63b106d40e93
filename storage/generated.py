"""What was generated after a prompt, and whether it can be true (docs/FORMAT.md, section Record)."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from raylens.storage.vocabulary import Vocabulary

#: Samples of one prompt.
MAX_SAMPLES = 1 << 20


class Generated(msgspec.Struct, frozen=True, omit_defaults=True):
    """The N generated tokens at the end of a record's ``token_ids``.

    Attributes:
        start: the length of the prompt in tokens; generated tokens are ``token_ids[start:]``.
        finish: ``eos`` if the last token ends the sequence, ``length`` if as many were generated as were asked for.
        text: the generated tokens as text, without a token that ends the sequence.
        logprobs: [N] log probability of each token in nats, in the model's own distribution.
        sampling_logprobs: [N] the same in the distribution that the token was drawn from (temperature, top-k, top-p).
        sample: which of the samples of its prompt this is, from 1; 0 if there is only one.
    """

    start: int
    finish: Literal["eos", "length"]
    text: str
    logprobs: list[float]
    sampling_logprobs: list[float]
    sample: int = 0


def fault(generated: Generated, token_ids: Sequence[int], positions: Sequence[int], text: str) -> str | None:
    """What of it does not fit the rest of its record, in words; None if all does."""
    count = len(token_ids) - generated.start
    if generated.start < 1 or count < 1:
        return f"{count} generated tokens after {generated.start}"
    if list(positions) != list(range(generated.start - 1, len(token_ids) - 1)):
        return "positions are not those of the generation's steps"
    for values in (generated.logprobs, generated.sampling_logprobs):
        if len(values) != count or not all(math.isfinite(value) and value <= 0 for value in values):
            return f"not {count} finite logprobs at or below 0 of generated tokens"
    if not 0 <= generated.sample <= MAX_SAMPLES:
        return f"sample {generated.sample}"
    return None if text.endswith(generated.text) else "the text does not end with what was generated"


def text_of(token_ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """The text of tokens that follow others; part of a character at the end reads U+FFFD."""
    return b"".join(vocabulary[token] or b"" for token in token_ids).decode("utf-8", "replace")
