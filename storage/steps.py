"""The steps of a generated record: what was written at each, and how it came about."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from raylens.storage.important import SURE, sure_layers
from raylens.storage.labels import text_label, token_label
from raylens.storage.record import Record
from raylens.storage.record_view import best_tokens
from raylens.storage.vocabulary import Vocabulary, token_text

#: Characters of the text so far that are shown, its end.
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token.

    Attributes:
        number: from 0; also that of its position among the lensed ones.
        position: whose hidden states predicted it.
        token, token_text: that was generated.
        text: before it.
        logprob, sampling_logprob: of the token, in the model's distribution and in that it was drawn from.
    """

    number: int
    position: int
    token: int
    token_text: str
    text: str
    logprob: float
    sampling_logprob: float


def steps(record: Record, vocabulary: Vocabulary) -> Iterator[Step]:
    """The steps in order; none of a record that was only read."""
    if (generated := record.generated) is None:
        return
    prompt = record.text[: len(record.text) - len(generated.text)]
    new = record.token_ids[generated.start :]
    logprobs = zip(generated.logprobs, generated.sampling_logprobs, strict=True)
    written = b""
    for number, (token, (logprob, drawn)) in enumerate(zip(new, logprobs, strict=True)):
        text = prompt + written.decode("utf-8", "replace")
        yield Step(number, generated.start - 1 + number, token, token_text(vocabulary, token), text, logprob, drawn)
        written += vocabulary[token] or b""


def lines(record: Record, vocabulary: Vocabulary, top: int, threshold: float) -> Iterator[str]:
    """The steps as LogitLens4LLMs prints them: token, text so far, and of the layers that matter the best tokens of each tap.

    Args:
        top: tokens of a tap.
        threshold: percents that a token of an important layer must exceed.
    """
    for step in steps(record, vocabulary):
        drawn = f", drawn with {math.exp(step.sampling_logprob):.1%}" if step.sampling_logprob else ""
        label = token_label(vocabulary, step.token)
        yield ""
        yield f"step {step.number + 1}, after position {step.position}: {label} with {math.exp(step.logprob):.1%}{drawn}"
        yield f"text so far: {text_label((step.text + step.token_text)[-_SHOWN:])}"
        layers = sure_layers(record, step.number, threshold)
        yield f"layers where a token of {', '.join(SURE)} has more than {threshold:g} %: {len(layers)} of {len(record.layers)}"
        for layer in sorted(layers):
            for tap, lens in record.taps.items():
                if layer in lens.layers:
                    yield f"{layer:>5}  {tap:<10}  {best_tokens(lens, layer, step.number, vocabulary, top)}"
