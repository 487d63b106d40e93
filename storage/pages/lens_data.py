"""What a page is given of a record: JSON with packed arrays (packing.py), read by assets/lens.js.

Shapes: L layers of a tap, P positions, k tokens a place, M tracked tokens, V tokens that occur anywhere in the page. Tokens are
numbers below V.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from raylens.storage.labels import text_label, token_label
from raylens.storage.pages.packing import packed, packed_logprobs, packed_texts, smallest_unsigned
from raylens.storage.plots.canvas import Scale
from raylens.storage.plots.request import columns_of, heads_of, prediction, taps_of
from raylens.storage.plots.scales import entropy_scale, exact_rank_scale, kl_scale, logprob_scale, prob_scale, rank_scale
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary

#: Colours that a scale is cut into.
COLOURS = 64


def lens_data(
    record: Record, vocabulary: Vocabulary, model: str, run: str, positions: Sequence[int] | None = None
) -> dict[str, Any]:
    """The record as its page reads it, every text in it a label.

    Args:
        positions: those to show; all of the record's by default.

    Raises:
        UsageError: the record has no tap.
    """
    columns = columns_of(record, record.positions if positions is None else positions)
    shown = [record.positions[column] for column in columns]
    read = [record.token_ids[position] for position in shown]
    following = [record.token_ids[position + 1] if position + 1 < len(record.token_ids) else -1 for position in shown]
    taps = {name: record.taps[name] for name in [*taps_of(record), *heads_of(record)]}
    asked = np.array([*read, *(token for token in following if token >= 0), *record.tracked], dtype=np.uint32)
    ids = np.unique(np.concatenate([asked, *(np.unique(lens.ids[:, columns]) for lens in taps.values())]))
    final = prediction(record)
    return {
        "model": text_label(model),
        "run": run,
        "prompt": text_label(record.id),
        "text": text_label(record.text),
        "truncated_from": record.truncated_from,
        "length": len(record.token_ids),
        "generated": None if record.generated is None else record.generated.start,
        "positions": shown,
        "read": np.searchsorted(ids, read).tolist(),
        "next": [int(np.searchsorted(ids, token)) if token >= 0 else -1 for token in following],
        "tracked": np.searchsorted(ids, np.array(record.tracked, dtype=np.uint32)).tolist(),
        "ids": packed(ids.astype(np.uint32)),
        "labels": packed_texts([token_label(vocabulary, int(token)) for token in ids]),
        "final_tap": final.tap,
        "final_layer": final.layer,
        "taps": [_tap(name, lens, columns, ids) for name, lens in taps.items()],
        "scales": _scales(taps[final.tap].ids.shape[2]),
    }


def _tap(name: str, lens: TapLens, columns: list[int], ids: NDArray[np.uint32]) -> dict[str, Any]:
    """One tap; layers ascending."""
    rows = np.argsort(lens.layers)
    places = np.ix_(rows, np.array(columns))
    numbers = np.searchsorted(ids, lens.ids[places]).astype(smallest_unsigned(len(ids)))
    return {
        "name": name,
        "layers": [lens.layers[row] for row in rows],
        "tokens": packed(numbers),
        "logprobs": packed_logprobs(lens.logprobs[places]),
        "stats": {stat: packed(values[places]) for stat, values in {"entropy": lens.entropy, **lens.stats}.items()},
    }


def _scales(k: int) -> dict[str, dict[str, Any]]:
    """The pictures' scales, so that a page has their colours."""
    scales = {
        "rank": rank_scale("", k),
        "exact_rank": exact_rank_scale(""),
        "prob": prob_scale(""),
        "logprob": logprob_scale(""),
        "entropy": entropy_scale(""),
        "kl": kl_scale(""),
    }
    return {stat: _scale(scale) for stat, scale in scales.items()}


def _scale(scale: Scale) -> dict[str, Any]:
    colours = matplotlib.colormaps[scale.colours](np.linspace(0, 1, COLOURS))
    return {
        "low": scale.low,
        "high": scale.high,
        "log": scale.log,
        "ticks": [[value, text] for value, text in scale.ticks],
        "colours": [to_hex(colour) for colour in colours],
    }
