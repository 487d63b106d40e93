"""A run with odd ids and metadata that queries are tested on, and plain answers from its records."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.store import open_store
from raylens.storage.taps import TAPS
from tests.builders import commit_outcomes, make_failure, make_record, make_run

#: Names that SQL, JSON paths and JSON pointers could each take for more than a name.
KEYS = ["kind", "a.b", 'q"uote', "it's", "$[0]", "/x~y", "", "größe ✓", "*"]
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
ALL_TAPS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
VOCABULARY = 6  # few tokens, so that predictions agree now and then


def with_stats(record: Record, seed: int) -> Record:
    """The record with KL, and the statistics of its tracked tokens."""
    rng = np.random.default_rng(seed)

    def stats(shape: tuple[int, ...]) -> dict[str, Any]:
        tracked = (*shape, len(record.tracked))
        return {
            "kl": rng.exponential(2, shape).astype(np.float32),
            "tracked_logprob": -rng.exponential(3, tracked).astype(np.float32),
            "tracked_rank": rng.integers(1, 90, tracked, dtype=np.uint32),
        }

    taps = {name: dataclasses.replace(tap, stats=stats(tap.entropy.shape)) for name, tap in record.taps.items()}
    return dataclasses.replace(record, taps=taps)


def documented(query: str) -> list[str]:
    """The columns that docs/QUERIES.md names of a query."""
    guide = (Path(__file__).parents[1] / "docs" / "QUERIES.md").read_text()
    line = next(line for line in guide.splitlines() if line.startswith(f"| `{query}` | "))  # before those of the views
    return re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", line.split(" | ")[2]))


def write_run(
    store: Path,
    seed: int = 0,
    k: int = 3,
    layers: int = 4,
    stats: bool = True,
    name: str = "demo",
    prompts: int = 7,
    lens_seed: int | None = None,
    track: Sequence[str] = (),
    **changes: Any,
) -> Run:
    """A run of two commits with odd ids and metadata, and failures; ``lens_seed`` gives the same tokens another lens, and
    ``track`` says what its two tracked tokens were named."""
    folder, _ = make_run(store, prompts + 2, name=name, **({"identity": {"lens": {"track": list(track)}}} if track else {}))
    settings: dict[str, Any] = {
        "layers": tuple(range(layers)),
        "taps": ALL_TAPS,
        "k": k,
        "vocabulary_size": VOCABULARY,
        **changes,
    }
    records = []
    for index in range(prompts):
        metadata = {key: f"{key}{index % 2}" for key in KEYS} if index != 3 else {}
        shape = {"tokens": 3 + index, "positions": None if index % 2 else [1, 2], "tracked": 2 if stats else 0}
        record = make_record(index, id=f"a/b'{index}\"…", seed=seed * 100 + index, metadata=metadata, **{**shape, **settings})
        if lens_seed is not None:
            lensed = make_record(index, seed=lens_seed * 100 + index, **{**shape, **settings})
            record = dataclasses.replace(record, taps=lensed.taps)
        if stats:
            record = with_stats(dataclasses.replace(record, tracked=[1, 4]), seed + index)
        records.append(record)
    failed = [
        make_failure(prompts, id="x/y", metadata={"kind": "kind0"}),
        make_failure(prompts + 1, kind="crash", message="died"),
    ]
    commit_outcomes(folder, *records[4:], failed[1])
    commit_outcomes(folder, failed[0], *records[:4])
    return open_store(store)[name]


def rounded(value: Any, steps: int) -> float:
    return float(np.round(np.float32(value) * steps) / np.float32(steps))


def places(run: Run, key: str | None = None) -> Iterator[dict[str, Any]]:
    """What a row of the view ``lens`` should say, for each place of each record."""
    for record in run.records():
        finals = record.taps["resid_post"].ids[-1, :, 0]
        for name, tap in record.taps.items():
            for at_layer, layer in enumerate(tap.layers):
                for at, position in enumerate(record.positions):
                    ids = tap.ids[at_layer, at].tolist()
                    final = int(finals[at])
                    yield {
                        "split": None if key is None else record.metadata.get(key),
                        "record": record,
                        "id": record.id,
                        "index": record.index,
                        "position": position,
                        "tap": name,
                        "layer": layer,
                        "ids": ids,
                        "logprobs": [rounded(value, 32) for value in tap.logprobs[at_layer, at]],
                        "entropy": rounded(tap.entropy[at_layer, at], 64),
                        "final": final,
                        "final_rank": ids.index(final) + 1 if final in ids else 0,
                        **{stat: values[at_layer, at] for stat, values in tap.stats.items()},
                    }


def grouped(rows: Iterator[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def text(run: Run, token: int) -> str:
    return (run.vocabulary[token] or b"").decode()


def decided(run: Run, taps: tuple[str, ...] = ("resid_post",), key: str | None = None) -> list[dict[str, Any]]:
    """For each place, where on its way through ``taps`` the final token leads first and for good."""
    found = []
    for rows in grouped((row for row in places(run, key) if row["tap"] in taps), "index", "position").values():
        way = sorted(rows, key=lambda row: (row["layer"], TAPS.index(row["tap"])))
        leads = [row["final_rank"] == 1 for row in way]
        stable = len(leads) - 1
        while stable and leads[stable - 1]:
            stable -= 1
        found.append(
            {**way[-1], "first": way[leads.index(True)], "stable": way[stable], "before": way[stable - 1] if stable else None}
        )
    return found


def same_rows(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == {
            name: pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, float) else value for name, value in other.items()
        }
