"""What a prompt is, and its outcome: a record, or a failure with its reason."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylens.storage.arguments import arguments
from raylens.storage.errors import UsageError
from raylens.storage.generated import MAX_SAMPLES, Generated, fault
from raylens.storage.vocabulary import Vocabulary, token_texts

if TYPE_CHECKING:
    import xarray as xr

    from raylens.storage.drawing import Picture

#: JSON metadata of a prompt: whatever other fields its corpus row had.
Metadata = dict[str, Any]

#: The most characters of a prompt's id in a corpus, and with the number of its sample, as records and failures have it.
ID_LIMIT = 4096
MAX_ID = ID_LIMIT + len(f"#{MAX_SAMPLES}")
#: What failures are counted by (docs/FORMAT.md, section Record). No others are sent; a store made elsewhere may hold some.
FAILURE_KINDS = ("empty", "too_long", "skipped", "input", "model", "memory", "too_large", "crash", "delivery")
#: The most characters of a failure's message.
MAX_MESSAGE = 1000
#: Layers of one tap, and tracked tokens of a record.
MAX_LAYERS, MAX_TRACKED = 4096, 4096
#: Ids of tokens are below it where the vocabulary is not known.
MAX_VOCABULARY = 1 << 32
#: The arrays that every ``TapLens`` has.
_ARRAYS = ("ids", "logprobs", "logsumexp", "entropy")


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row of a corpus. Exactly one of ``text``, ``messages`` and ``token_ids`` is given.

    Attributes:
        index: position in the corpus, from 0; delivery identifies a prompt by it.
        id: the user's name for it, any string; the index in decimal if the corpus has no ids.
        text: plain text, tokenized with the tokenizer's special tokens.
        messages: chat messages, for the model's chat template.
        token_ids: token ids, used as they are.
        metadata: the row's other fields.
        sample: which of its row's samples this is, from 1; 0 if there is only one.
    """

    index: int
    id: str
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    token_ids: list[int] | None = None
    metadata: Metadata = {}
    sample: int = 0


def ascend(numbers: Sequence[int], below: int) -> bool:
    """Whether there are numbers, and they rise from 0 or more to less than ``below``."""
    return bool(numbers) and numbers[0] >= 0 and numbers[-1] < below and all(map(operator.lt, numbers, islice(numbers, 1, None)))


@dataclass(frozen=True, slots=True)
class TapLens:
    """The lens at one tap: L layers, P positions, and the top k tokens of each place, best first.

    Attributes:
        layers: [L] layer numbers, ascending.
        ids: [L, P, k] uint32, token ids.
        logprobs: [L, P, k] float16 or float32, log probabilities in nats.
        logsumexp: [L, P] float32, logsumexp of the logits over the whole vocabulary.
        entropy: [L, P] float32, in nats, over the whole vocabulary.
        stats: the statistics stored for this tap, by name: [L, P], or [L, P, M] for M tracked tokens. Ranks are uint32 from 1,
            0 where there is none; all others are float32, NaN where there is no value.
    """

    layers: tuple[int, ...]
    ids: NDArray[np.uint32]
    logprobs: NDArray[np.floating[Any]]
    logsumexp: NDArray[np.float32]
    entropy: NDArray[np.float32]
    stats: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all numbers are the same; where neither has a value, as in NaN, nothing differs."""
        if not isinstance(other, TapLens):
            return NotImplemented
        if (self.layers, self.stats.keys()) != (other.layers, other.stats.keys()):
            return False
        pairs = [(getattr(self, name), getattr(other, name)) for name in _ARRAYS]
        pairs += [(values, other.stats[name]) for name, values in self.stats.items()]
        return all(np.array_equal(one, another, equal_nan=True) for one, another in pairs)

    def __repr__(self) -> str:  # one line: the arrays would fill pages
        layers, positions, k = self.ids.shape
        stats = f"; {', '.join(self.stats)}" if self.stats else ""
        return f"<TapLens: {layers} layers, {positions} positions, top {k} tokens{stats}>"

    def part(self, positions: slice | NDArray[np.int64]) -> "TapLens":
        """The lens at some of the positions, by their indices along P."""
        arrays = {name: getattr(self, name)[:, positions] for name in _ARRAYS}
        return TapLens(self.layers, stats={name: values[:, positions] for name, values in self.stats.items()}, **arrays)


@dataclass(frozen=True, slots=True)
class Record:
    """What the lens read in one prompt of T tokens.

    Attributes:
        id, index, metadata: as in the prompt.
        text: the text that was tokenized (for messages, the rendered chat template), then the generated text.
        token_ids: [T] the ids that the model read, then those that it generated.
        tokens: [T] the same as text for display; different ids may look alike.
        positions: [P] the positions that were lensed, from 0, ascending.
        layers: [L] the layers that were lensed, from 0, ascending.
        taps: a ``TapLens`` for each tap, by name; a tap that the model lacks is absent.
        truncated_from: the prompt's length in tokens before it was cut; None if it was not.
        tracked: [M] ids of the tracked tokens, in the order of the last axis of their statistics.
        generated: which tokens the model generated, if any; ``positions`` are then the steps.
        vocabulary: the bytes of each token, by id, if the reader of the record had them; not part of what is stored.
    """

    id: str
    index: int
    text: str
    token_ids: list[int]
    tokens: list[str]
    positions: list[int]
    layers: list[int]
    taps: dict[str, TapLens]
    metadata: Metadata = field(default_factory=dict)
    truncated_from: int | None = None
    tracked: list[int] = field(default_factory=list)
    generated: Generated | None = None
    vocabulary: Vocabulary | None = field(default=None, repr=False, compare=False)

    @property
    def statistics(self) -> dict[str, NDArray[Any]]:
        """Each statistic that some tap has, with its values at the first such tap."""
        found: dict[str, NDArray[Any]] = {}
        for tap in self.taps.values():
            found = tap.stats | found
        return found

    def fault(self, vocabulary_size: int = MAX_VOCABULARY) -> str | None:
        """What cannot be true of the record, in words; None if all can. Every record read from a frame or a segment is checked.

        The numbers themselves are not looked at; everything else is, even if the record comes without its taps.
        """
        if not self.token_ids or len(self.tokens) != len(self.token_ids):
            return f"{len(self.token_ids)} token ids and {len(self.tokens)} tokens"
        if not 0 <= min(self.token_ids) <= max(self.token_ids) < vocabulary_size:
            return f"a token id of the prompt is outside the vocabulary of {vocabulary_size}"
        if not ascend(self.positions, below=len(self.token_ids)):
            return "positions are not ascending numbers within the prompt"
        if not all(ascend(layers, below=MAX_LAYERS) for layers in (self.layers, *(tap.layers for tap in self.taps.values()))):
            return "layers are not ascending numbers"
        if len(self.tracked) > MAX_TRACKED or not all(0 <= token < vocabulary_size for token in self.tracked):
            return f"{len(self.tracked)} tracked tokens, limit {MAX_TRACKED}, or one outside the vocabulary"
        if self.generated is not None and (wrong := fault(self.generated, self.token_ids, self.positions, self.text)):
            return wrong
        read = self.generated.start if self.generated is not None else len(self.token_ids)
        if self.truncated_from is not None and not read < self.truncated_from < 1 << 32:
            return f"truncated from {self.truncated_from} tokens to {read}"
        return None

    def __repr__(self) -> str:  # one line: the arrays would fill pages
        size = f"{len(self.token_ids)} tokens, {len(self.positions)} positions, {len(self.layers)} layers"
        return f"<Record {self.id!r}: {size}, {', '.join(self.taps)}>"

    def to_str_tokens(self, ids: ArrayLike) -> Any:
        """The texts of token ids, such as ``taps["resid_post"].ids[-1, -1]``: an array of strings of the same shape, or the
        string of a single id. Bytes that are no whole character become U+FFFD.

        Raises:
            UsageError: the ids are no integers, or the record was read without its vocabulary.
        """
        return token_texts(self._known(), ids)

    def _known(self) -> Vocabulary:
        if self.vocabulary is None:
            raise UsageError("this record is without its vocabulary; take one of a run, or of raylens.lens")
        return self.vocabulary

    @arguments()
    def plot(
        self,
        kind: str = "grid",
        output: str | Path | None = None,
        *,
        title: str | None = None,
        stat: str | None = None,
        tap: str | None = None,
        positions: str | int | None = None,
        layer_step: int | None = None,
        token: str | int | Sequence[str | int] = (),
        important: int | None = None,
        important_threshold: float | None = None,
        pages: bool = False,
        font: str | Path | None = None,
    ) -> "Picture":
        """Draw the record, such as one of ``raylens.lens``. A notebook shows the picture that is returned (docs/PICTURES.md).

        Args:
            kind: ``grid``, ``rank``, ``trajectory`` or ``attribution``.
            output: file to write, whose name ends in .png, .svg or .pdf; without one the picture is a PNG in memory.
            title: heading; by default the text.
            stat, tap, ...: as the options of ``raylens plot``.

        Raises:
            UsageError: a choice does not fit the kind or the record, the file cannot be written, or the record was read without
                its vocabulary.
        """
        from raylens.storage.drawing import Choices, draw_alone

        shown = stat, tap, positions, layer_step, token, important, important_threshold, pages
        return draw_alone(self, Choices(kind, *shown, font=font), output, title, self._known())

    def to_xarray(self) -> "xr.Dataset":
        """The arrays of all taps as one dataset: ``ids``, ``logprobs`` and the statistics, by tap, position, layer and rank.

        Raises:
            UsageError: xarray is not installed.
        """
        from raylens.storage.arrays import record_dataset

        return record_dataset(self)

    def _repr_html_(self) -> str:
        from raylens.storage.notebook import record_html

        return record_html(self)


#: The fields that frames and JSON lines have under the same names.
FIELDS = tuple(one.name for one in fields(Record) if one.name not in {"taps", "vocabulary"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a prompt has no record.

    Attributes:
        id, index, metadata: as in the prompt.
        kind: one word, out of ``FAILURE_KINDS``.
        message: the reason, in one line.
    """

    id: str
    index: int
    kind: str
    message: str
    metadata: Metadata = field(default_factory=dict)
