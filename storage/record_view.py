"""Records for people: token text and probabilities beside ids and logprobs."""

import math
from typing import Any

import numpy as np
import orjson

from raylens.storage.labels import token_label
from raylens.storage.record import Failure, Record, TapLens
from raylens.storage.record_json import encode_outcome
from raylens.storage.taps import is_head
from raylens.storage.vocabulary import Vocabulary, token_text


def readable(outcome: Record | Failure, vocabulary: Vocabulary) -> dict[str, Any]:
    """The stored JSON with ``tokens`` and ``probabilities``, [L][P][k], added to each tap, and ``tracked_tokens``, [M]."""
    value: dict[str, Any] = orjson.loads(encode_outcome(outcome))
    if "tracked" in value:
        value["tracked_tokens"] = [token_text(vocabulary, token) for token in value["tracked"]]
    for tap in value.get("taps", {}).values():
        tap["tokens"] = [[[token_text(vocabulary, token) for token in place] for place in layer] for layer in tap["ids"]]
        tap["probabilities"] = [
            [[round(math.exp(logprob), 6) for logprob in place] for place in layer] for layer in tap["logprobs"]
        ]
    return value


def table(record: Record, vocabulary: Vocabulary, position: int, top: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a layer: at ``position`` (an index into the record's positions) the ``top`` tokens of each tap.

    The highest layer comes last, as the model computes. Heads are not among the taps; see ``heads_table``.
    """
    taps = [tap for tap in record.taps if not is_head(tap)]
    layers = sorted({layer for tap in taps for layer in record.taps[tap].layers})
    rows = [[str(layer), *(best_tokens(record.taps[tap], layer, position, vocabulary, top) for tap in taps)] for layer in layers]
    return ["layer", *taps], rows


def heads_table(record: Record, vocabulary: Vocabulary, position: int, top: int) -> tuple[list[str], list[list[str]]]:
    """As ``table``, a row for each layer and head."""
    heads = {tap: lens for tap, lens in record.taps.items() if is_head(tap)}
    rows = [
        [str(layer), tap, best_tokens(lens, layer, position, vocabulary, top)]
        for tap, lens in heads.items()
        for layer in lens.layers
    ]
    return ["layer", "head", "tokens"], sorted(rows, key=lambda row: int(row[0]))


def stats_table(record: Record, vocabulary: Vocabulary, position: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a tap and layer that has any, of the statistics at ``position``; tracked tokens have a column each."""
    labels = [token_label(vocabulary, token) for token in record.tracked]
    header, rows = ["layer", "tap"], []
    widths = {}
    for name, values in record.statistics.items():
        widths[name] = len(labels) if values.ndim == 3 else 1
        word = name.removeprefix("tracked_")
        header += [f"{word} {label}" for label in labels] if values.ndim == 3 else [name]
    for tap, lens in record.taps.items():
        for at, layer in enumerate(lens.layers):
            words: list[str] = []
            for name, width in widths.items():
                stored = lens.stats.get(name)
                words += [""] * width if stored is None else map(_number, np.atleast_1d(stored[at, position]))
            if any(words):
                rows.append([str(layer), tap, *words])
    return header, sorted(rows, key=lambda row: int(row[0]))


def _number(value: float | int) -> str:
    """A rank, or a number to 4 digits; nothing where there is no value."""
    if (value == 0 and not isinstance(value, float | np.floating)) or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float | np.floating) else f"{value:,}"


def best_tokens(lens: TapLens, layer: int, position: int, vocabulary: Vocabulary, top: int) -> str:
    """Labels and probabilities of one place's ``top`` tokens; empty where the tap has no such layer."""
    if layer not in lens.layers:
        return ""
    place = (lens.layers.index(layer), position)
    best = zip(lens.ids[place][:top].tolist(), np.exp(lens.logprobs[place][:top].astype(np.float64)).tolist(), strict=True)
    return "  ".join(f"{token_label(vocabulary, token)} {probability:.1%}" for token, probability in best)
