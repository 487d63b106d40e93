"""From a prompt to token ids: plain text, chat messages, or ids given ready."""

import math
from dataclasses import dataclass
from typing import Any

from raylens.storage.errors import named_line
from raylens.storage.positions import Positions
from raylens.storage.record import Failure, Prompt
from raylens.workers.settings import InputSettings

#: Fields of a configuration that say how many positions there are; the last two are MPT's, which makes biases for no more, and
#: of decoders that have an encoder elsewhere, such as Whisper's.
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt ready for the model: its text as the model reads it, T ids, the positions to lens, [M] tokens to track."""

    prompt: Prompt
    text: str
    ids: list[int]
    positions: list[int]
    truncated_from: int | None
    tracked: tuple[int, ...] = ()


class Tokenizer:
    """Tokenizes prompts the same way for a whole run.

    Args:
        tokenizer: of the model.
        settings: of the input.
        positions: as in LensSettings.
        limit: the model's own longest input, in tokens.
        vocabulary_size: number of embeddings.
        new: tokens that are to be generated after each prompt, for which it must leave room.
    """

    def __init__(
        self, tokenizer: Any, settings: InputSettings, positions: str, limit: int, vocabulary_size: int, new: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._positions = positions
        self._limit = min(settings.max_tokens or limit, limit - new)
        self._new = new
        self._why = f" before {new} generated ones" if new else ""
        self._vocabulary_size = vocabulary_size

    def __call__(self, prompt: Prompt) -> Tokenized | Failure:
        """The tokenized prompt, or why it cannot be read."""
        try:
            text, ids = self._ids(prompt)
            if self._new and self._settings.on_long == "truncate" and len(ids) > self._limit:
                text = self._cut(prompt, text, ids[: self._limit])
        except Exception as error:  # noqa: BLE001  a template or tokenizer may raise anything; the run goes on
            return _failure(prompt, "input", f"cannot be tokenized: {named_line(error)}")
        if not ids:
            return _failure(prompt, "empty", "the prompt has no tokens")
        if not self._known(ids):
            return _failure(prompt, "input", f"token ids must be from 0 to {self._vocabulary_size - 1}")
        full = len(ids)
        if full > self._limit:
            if self._settings.on_long != "truncate":
                kind = "skipped" if self._settings.on_long == "skip" else "too_long"
                return _failure(
                    prompt, kind, f"{full} tokens, the limit is {self._limit}{self._why}; see --max-tokens and --on-long"
                )
            ids = ids[: self._limit]
        positions = Positions.parse(self._positions).among(range(len(ids)), len(ids))
        if not positions:
            return _failure(prompt, "input", f"--positions {self._positions} chooses none of its {len(ids)} tokens")
        return Tokenized(prompt, text, ids, positions, full if full > self._limit else None)

    def _ids(self, prompt: Prompt) -> tuple[str, list[int]]:
        if prompt.token_ids is not None:
            ids = list(prompt.token_ids)
            return self._tokenizer.decode(ids) if self._known(ids) else "", ids
        if not prompt.messages:
            text = prompt.text or ""
            return text, text_ids(self._tokenizer, text)
        text = self._tokenizer.apply_chat_template(
            prompt.messages,
            chat_template=self._settings.chat_template,
            tokenize=False,
            add_generation_prompt=prompt.messages[-1].get("role") != "assistant",
        )
        # the template writes the special tokens itself
        return text, self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _cut(self, prompt: Prompt, text: str, ids: list[int]) -> str:
        """The part of a prompt's text that these first ids of it stand for: what is generated goes on from there."""
        if prompt.token_ids is not None:
            return self._tokenizer.decode(ids) if self._known(ids) else ""
        special = not prompt.messages  # as in _ids
        if not getattr(self._tokenizer, "is_fast", False):
            return str(self._tokenizer.decode(ids, skip_special_tokens=special))
        spans = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
        return text[: max(end for _, end in spans[: len(ids)])]

    def _known(self, ids: list[int]) -> bool:
        return all(0 <= number < self._vocabulary_size for number in ids)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, with the special tokens that the tokenizer adds to it; none of an empty one."""
    ids: list[int] = tokenizer(text)["input_ids"] if text else []
    return ids


def _failure(prompt: Prompt, kind: str, message: str) -> Failure:
    return Failure(prompt.id, prompt.index, kind, " ".join(message.split())[:500], prompt.metadata)


def longest_input(config: Any, tokenizer: Any) -> int:
    """The longest input in tokens: what the positions allow; a huge number where neither side says."""
    limits = [*(getattr(config, name, None) for name in _LIMITS), tokenizer.model_max_length]
    return min([int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < math.inf], default=1 << 30)
