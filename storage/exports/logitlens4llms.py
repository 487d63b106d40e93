"""The two JSON files of LogitLens4LLMs (https://github.com/zhenyu-02/LogitLens4LLMs): its keys, integer percents and threshold.

Its steps are those of ``--generate``; a prompt that was only read is one, of its last token.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO

from raylens.storage.certificate import model_layers
from raylens.storage.errors import UsageError
from raylens.storage.important import SURE, sure_layers, whole_percents
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.steps import steps
from raylens.storage.taps import ALIASES
from raylens.storage.vocabulary import token_text

#: Component -> token and percent, best first.
Layer = dict[str, list[tuple[str, int]]]
#: Given a record and the number of a lensed position: its layers and taps that are written.
Chosen = Callable[[Record, int], tuple[Iterable[int], Collection[str]]]


def write_all_layers(run: Run, file: BinaryIO, records: Iterable[Record] | None = None) -> None:
    """Write ``all_layers.json``, of some records or all.

    Raises:
        UsageError: the run lacks the last layer's block output, or a record its last token.
        StoreError: a segment is damaged.
    """
    _write(run, file, records, "all_layers_data", lambda record, _: (record.layers, ALIASES.values()))


def write_important_layers(run: Run, file: BinaryIO, records: Iterable[Record] | None = None) -> None:
    """Write ``important_layers.json``, without the middle residual; raises as ``write_all_layers``."""
    _write(run, file, records, "important_layers", lambda record, column: (sorted(sure_layers(record, column)), SURE))


#: File -> what writes it.
FILES = {"all_layers.json": write_all_layers, "important_layers.json": write_important_layers}


def _write(run: Run, file: BinaryIO, records: Iterable[Record] | None, key: str, chosen: Chosen) -> None:
    found = _steps(run, run.records() if records is None else records, chosen)
    file.writelines(_object((f"step_{number}", {**said, key: layers}) for number, said, layers in found))


def _steps(run: Run, records: Iterable[Record], chosen: Chosen) -> Iterator[tuple[int, dict[str, str], dict[int, Layer]]]:
    """Number, what was said, and the layers of each step; the steps of one record are numbered on from those before."""
    before = 0
    for record in records:
        if record.generated is None:
            yield record.index, _said(run, record), _layers(run, record, -1, chosen)
        for step in steps(record, run.vocabulary):
            said = {"input_text": step.text, "predicted_token": step.token_text}
            yield before + step.number, said, _layers(run, record, step.number, chosen)
        before += len(record.positions)


def _object(members: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    """What ``json.dump(..., indent=2, ensure_ascii=False)`` writes of an object, a member at a time."""
    before = "{\n  "
    for key, value in members:
        text = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")  # in strings line ends are escaped
        yield f"{before}{json.dumps(key)}: {text}".encode()
        before = ",\n  "
    yield b"{}" if before[0] == "{" else b"\n}"


def _said(run: Run, record: Record) -> dict[str, str]:
    """The text, and the token that the model predicts after it."""
    last = model_layers(run.certificate, max(record.layers)) - 1
    block = record.taps.get("resid_post")
    if block is None or block.layers[-1] != last:
        raise UsageError(f"run {run.name!r} lacks resid_post of the last layer, {last}, which tells the predicted token")
    if record.positions[-1] != len(record.token_ids) - 1:
        raise UsageError(
            f"prompt {record.id[:80]!r} was not lensed at its last token, which this format is about; run with --positions last"
        )
    return {"input_text": record.text, "predicted_token": token_text(run.vocabulary, int(block.ids[-1, -1, 0]))}


def _layers(run: Run, record: Record, column: int, chosen: Chosen) -> dict[int, Layer]:
    layers, taps = chosen(record, column)
    return {
        layer: {
            component: _best(run, record, tap, layer, column)
            for component, tap in ALIASES.items()
            if tap in taps and tap in record.taps and layer in record.taps[tap].layers
        }
        for layer in layers
    }


def _best(run: Run, record: Record, tap: str, layer: int, column: int) -> list[tuple[str, int]]:
    lens = record.taps[tap]
    place = (lens.layers.index(layer), column)
    percents = whole_percents(lens.logprobs[place]).tolist()
    return [(token_text(run.vocabulary, int(token)), percent) for token, percent in zip(lens.ids[place], percents, strict=True)]
