"""What a picture is asked to show, checked against what the record has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raylens.storage.errors import NotDrawn, UsageError, brief
from raylens.storage.labels import fit, text_label
from raylens.storage.positions import Positions
from raylens.storage.record import Record, TapLens
from raylens.storage.taps import ALIASES, TAPS, is_head, tap_order
from raylens.storage.vocabulary import Vocabulary
from raylens.storage.wanted import Wanted

_PROMPT_CELLS = 240  # of the prompt in a caption: its end, which is what the position has read last


@dataclass(frozen=True, slots=True)
class Request:
    """The choices that a picture's caller makes; None leaves one to the kind of picture.

    Attributes:
        source: the model, and the run if there is one, for the heading; empty if not known.
        stat: what colours the cells.
        tap: the tap to show.
        positions: the positions to show, counted from the start of the prompt.
        title: heading; the source and the prompt's name then go to the line below it.
        layer_step: show every so many layers, counted from the last one down.
        tokens: ids of the tokens that a trajectory follows, or of the one that colours a grid.
        important: show so many layers of a rank picture, those where the predicted token's rank changes most.
        threshold: show the layers of a rank picture where LogitLens4LLMs finds a token of more than so many percent.
        pages: break what is too tall or too long into pages; a grid then shows all positions, the others one a page.
    """

    source: str
    stat: str | None = None
    tap: str | None = None
    positions: Sequence[int] | None = None
    title: str | None = None
    layer_step: int = 1
    tokens: Sequence[int] | None = None
    important: int | None = None
    threshold: float | None = None
    pages: bool = False

    def chosen_layers(self, lens: TapLens) -> list[tuple[int, int]]:
        """(row, layer) of a tap from its first layer up; with a step, the last layer is always among them."""
        ascending = sorted(enumerate(lens.layers), key=lambda place: place[1])
        return ascending[::-1][:: self.layer_step][::-1]

    def heading(self, record: Record) -> str:
        """First line of the picture."""
        return self._subject(record) if self.title is None else self.title

    def captions(self, record: Record, *lines: str) -> tuple[str, ...]:
        """Lines below the heading: who is shown, unless the heading says it, then those given."""
        return lines if self.title is None else (text_label(self._subject(record)), *lines)

    def _subject(self, record: Record) -> str:
        return f"{self.source} · prompt {record.id}" if self.source else f"prompt {record.id}"

    def chosen_stat(self, stats: Sequence[str]) -> str:
        """The stat asked for, or the kind's first.

        Raises:
            UsageError: not one of the kind's.
        """
        if self.stat is not None and self.stat not in stats:
            raise UsageError(f"stat {brief(self.stat, repr)}: this picture can be coloured by {', '.join(stats)}")
        return stats[0] if self.stat is None else self.stat

    def chosen_tap(self, record: Record) -> str:
        """The tap asked for (canonical name), or ``resid_post``, or where the record lacks it the last tap it has.

        Raises:
            UsageError: not in the record.
        """
        if self.tap is None:
            return taps_of(record)[-1]
        tap = ALIASES.get(self.tap, self.tap)
        present = [*taps_of(record), *heads_of(record)]
        if tap not in present:
            raise UsageError(f"tap {brief(self.tap, repr)} is not in prompt {record.id!r}; it has {', '.join(present)}")
        return tap

    def chosen_position(self, record: Record, picture: str) -> int:
        """The one position asked for, or the last of the record.

        Raises:
            UsageError: several were asked for, or one that the record lacks.
        """
        if self.positions is not None and len(set(self.positions)) > 1:
            raise UsageError(
                f"{picture} shows one position; {len(set(self.positions))} were chosen; --pages draws a page of each"
            )
        (position,) = self.chosen_positions(record, 1)
        return position

    def each_position(self, record: Record) -> "list[Request]":
        """The request itself, or for pages one request a position; by default only the last."""
        if not self.pages:
            return [self]
        return [replace(self, positions=(position,)) for position in self.chosen_positions(record, 1)]

    def chosen_positions(self, record: Record, most: int) -> tuple[int, ...]:
        """The positions asked for, ascending and without repeats, or the last ``most`` of the record.

        Raises:
            NotDrawn: none asked for, none in the record, or one that the record lacks.
        """
        if not record.positions:
            raise NotDrawn(f"prompt {record.id!r} has no lensed position to draw")
        if self.positions is None:
            return tuple(record.positions[-most:])
        missing = sorted(set(self.positions) - set(record.positions))
        if missing or not self.positions:
            wrong = f"position {missing[0]} is not in prompt {record.id!r}" if missing else "no position chosen"
            raise NotDrawn(f"{wrong}; it has {spans(record.positions)}")
        return tuple(sorted(set(self.positions)))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the last layer of a record predicts at each position.

    Attributes:
        tap, layer: where it was read: ``resid_post`` of the last lensed layer, if the record has that tap.
        ids: [P] token ids.
        probs: [P] their probabilities.
    """

    tap: str
    layer: int
    ids: NDArray[np.uint32]
    probs: NDArray[np.float64]


def prediction(record: Record) -> Prediction:
    """The top-1 tokens of the last layer of the last tap."""
    tap = taps_of(record)[-1]
    lens = record.taps[tap]
    row = int(np.argmax(lens.layers))
    return Prediction(tap, lens.layers[row], lens.ids[row, :, 0], np.exp(lens.logprobs[row, :, 0].astype(np.float64)))


def taps_of(record: Record) -> list[str]:
    """The taps with at least one layer, in block order, but for those of heads.

    Raises:
        UsageError: there is none.
    """
    present = [tap for tap in TAPS if tap in record.taps and record.taps[tap].layers]
    if not present:
        raise UsageError(f"prompt {record.id!r} has no tap to draw")
    return present


def heads_of(record: Record) -> list[str]:
    """The taps of heads, in their order."""
    return sorted(filter(is_head, record.taps), key=tap_order)


def spans(positions: Sequence[int]) -> str:
    """Positions in words, runs shortened: ``0 to 3, 7, 9 to 12``."""
    ordered = np.unique(np.asarray(positions))
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    shown = words if len(words) <= 8 else [*words[:4], f"({len(words) - 5} more)", words[-1]]
    return ", ".join(shown)


def read_to(record: Record, vocabulary: Vocabulary, position: int) -> str:
    """The end of what the model had read at a position, and whether all of it was the prompt or it had written some itself."""
    # So many tokens fill the caption however long the prompt is.
    first = max(0, position + 1 - _PROMPT_CELLS)
    known = [vocabulary[i] if i < len(vocabulary) else None for i in record.token_ids[first : position + 1]]
    text = text_label(b"".join(token if token is not None else b"\xef\xbf\xbd" for token in known))
    written = record.generated is not None and position >= record.generated.start
    name = "text so far" if written else "prompt"
    return f"{name}: {fit(f'…{text}' if first else text, _PROMPT_CELLS, keep='end')}"


def coverage(record: Record, shown: Sequence[int]) -> str:
    """Which positions a picture shows and which it leaves out, in words."""
    words = [f"position{'s' if len(shown) > 1 else ''} {spans(shown)} of 0 to {len(record.token_ids) - 1}"]
    hidden = len(set(record.positions) - set(shown))
    if hidden:
        words.append(f"{hidden} of {len(record.positions)} lensed positions not shown")
    if len(record.positions) < len(record.token_ids):
        words.append(f"lensed: {spans(record.positions)}")
    read = len(record.token_ids)
    if record.generated is not None:
        read = record.generated.start
        words.append(f"generated: {read} to {len(record.token_ids) - 1}")
    if record.truncated_from is not None:
        words.append(f"prompt cut from {record.truncated_from} to {read} tokens before the model read it")
    return "; ".join(words)


def for_record(request: Request, record: Record, positions: str | None, tokens: Wanted | None) -> Request:
    """The request with what is said of all records alike, of positions and tokens, put in this record's terms.

    Raises:
        NotDrawn: it lacks the positions, or a token.
        UsageError: the positions are none of the forms.
    """
    if positions is not None:
        request = replace(request, positions=positions_of(record, positions))
    return request if tokens is None else replace(request, tokens=tokens.of(record))


def columns_of(record: Record, positions: Sequence[int]) -> list[int]:
    """Where lensed positions stand in the record's arrays."""
    columns = {position: column for column, position in enumerate(record.positions)}
    return [columns[position] for position in positions]


def positions_of(record: Record, text: str) -> list[int]:
    """The lensed positions that are meant; ``last`` counts those that were lensed, the others the prompt's tokens.

    Raises:
        NotDrawn: none of them was lensed.
        UsageError: it is none of the forms (``Positions``).
    """
    chosen = Positions.parse(text).among(record.positions, len(record.token_ids))
    if not chosen:
        raise NotDrawn(
            f"--positions {text!r}: none of them was lensed in prompt {record.id!r}, "
            f"which has {record.positions[0]} to {record.positions[-1]}"
        )
    return chosen
