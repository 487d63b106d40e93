"""What a notebook shows for a store, a run and a record: small tables of escaped text that load and run nothing."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from raylens.storage.errors import RaylensError
from raylens.storage.labels import fit, label, text_label, token_label
from raylens.storage.record import Record

if TYPE_CHECKING:
    from raylens.storage.run import Run
    from raylens.storage.store import Store

#: Positions and layers of a record that are shown, the last ones and evenly spaced ones.
MAX_POSITIONS, MAX_LAYERS = 12, 16
#: Width of a token, and of other text, in characters.
MAX_TOKEN, MAX_TEXT = 12, 120
#: Runs of a store that are shown, the newest.
MAX_RUNS = 50


def record_html(record: Record) -> str:
    """The best token of each layer at the last positions, last layer first; the stronger the colour, the more probable."""
    tap = "resid_post" if "resid_post" in record.taps else list(record.taps)[-1]
    lens = record.taps[tap]
    columns = range(len(record.positions))[-MAX_POSITIONS:]
    step = -(-len(lens.layers) // MAX_LAYERS)
    rows = [_cells([*(str(record.positions[column]) for column in columns)], "position", "th")]
    for row in range(len(lens.layers) - 1, -1, -step):
        best = [
            _token_cell(record, int(lens.ids[row, at, 0]), float(np.exp(np.float32(lens.logprobs[row, at, 0])))) for at in columns
        ]
        rows.append(f"<tr><th>layer {lens.layers[row]}</th>{''.join(best)}</tr>")
    read = [fit(_read(record, record.positions[column]), MAX_TOKEN) for column in columns]
    rows.append(_cells(read, "token", "th"))
    title = f"prompt {text_label(record.id)}: top token of {tap}, {len(columns)} of {len(record.positions)} positions"
    layers = f"{len(range(0, len(lens.layers), step))} of {len(lens.layers)} layers"
    return _table(f"{fit(title, MAX_TEXT)}, {layers}; the bluer, the more probable", rows)


def _read(record: Record, position: int) -> str:
    """The label of the prompt's own token; of bytes that are no text only a vocabulary has one."""
    if record.vocabulary is None:
        return label(record.tokens[position])
    return token_label(record.vocabulary, record.token_ids[position])


def _token_cell(record: Record, token: int, probability: float) -> str:
    name = f"‹id {token}›" if record.vocabulary is None else token_label(record.vocabulary, token)
    style = f"background: rgba(31, 119, 180, {0.7 * probability:.2f})"
    return f'<td style="{style}" title="{probability:.1%}"><bdi>{_shown(name, MAX_TOKEN)}</bdi></td>'


def run_html(run: "Run") -> str:
    """Model, corpus, counts and settings of a run."""
    counts = run.counts()
    failures = ", ".join(f"{count:,} {kind}" for kind, count in counts["failures"].items())
    rows = [
        ("created", run.manifest.created),
        *((name, str(run.manifest.sources.get(name, ""))) for name in ("model", "corpus")),
        ("prompts", f"{counts['prompts']:,}, {'complete' if counts['complete'] else 'unfinished'}"),
        ("records", f"{counts['records']:,}"),
        ("failures", failures or "0"),
        ("tokens", f"{counts['tokens']:,}"),
        *((section, _settings(run, section)) for section in ("lens", "generation", "intervention")),
    ]
    rows = [(name, value) for name, value in rows if value or name not in ("generation", "intervention")]
    return _table(f"run {run.name}", [_cells([value], name) for name, value in rows])


def _settings(run: "Run", section: str) -> str:
    """Those of a section that are given; nothing if the run has no such section."""
    given = run.manifest.identity.get(section, {})
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)


def store_html(store: "Store") -> str:
    """A row a run; one that cannot be read has its error instead."""
    names = store.names()
    rows = [_cells(["records", "failures", "prompts", "tokens", "model"], "run", "th")]
    rows += [_cells(_run_cells(store, name), name) for name in names[-MAX_RUNS:]]
    title = f"store {text_label(str(store.path))}: {len(names):,} runs"
    return _table(title + (f", the last {MAX_RUNS}" if len(names) > MAX_RUNS else ""), rows)


def _run_cells(store: "Store", name: str) -> Sequence[str]:
    try:
        run = store[name]
        counts = run.counts()
    except RaylensError as error:
        return ["", "", "", "", str(error)]
    numbers = (counts["records"], sum(counts["failures"].values()), counts["prompts"], counts["tokens"])
    model = str(run.manifest.sources.get("model", ""))
    return [*(f"{number:,}" for number in numbers), f"{model}, edited" if run.manifest.edited else model]


def _table(title: str, rows: Iterable[str]) -> str:
    return f"<table><caption>{escape(title)}</caption>{''.join(rows)}</table>"


def _cells(texts: Iterable[str], name: str, kind: str = "td") -> str:
    cells = "".join(f"<{kind}><bdi>{_shown(text_label(text), MAX_TEXT)}</bdi></{kind}>" for text in texts)
    return f"<tr><th>{_shown(text_label(name), MAX_TEXT)}</th>{cells}</tr>"


def _shown(text: str, width: int) -> str:
    return escape(fit(text, width))
