"""Runs and results in polars, pandas and xarray: the very numbers of the records, under the names that are documented."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.errors import UsageError
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.store import Store
from raylens.storage.vocabulary import token_text
from tests.builders import commit_outcomes, make_failure, make_record, make_run, make_vocabulary
from tests.queried import with_stats
from tests.waiting import HUNG

TAPS = ("resid_pre", "attn_out", "resid_post")
HOSTILE = 'a,"b"\n=1+1 <script>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two records of different lengths with a failure between them, in two commits."""
    store = tmp_path_factory.mktemp("frames")
    folder, _ = make_run(store, prompts=3)
    commit_outcomes(folder, make_record(2, taps=TAPS, tokens=6, positions=[1, 5], stats=True), make_failure(1))
    commit_outcomes(folder, make_record(0, taps=TAPS, stats=True, id=HOSTILE))
    return Store(store)["demo"]


def plain_rows(run: Run) -> list[dict[str, Any]]:
    """The rows by loops over the records."""
    rows = []
    for record in run.records():
        for name, tap in record.taps.items():
            for at, layer in enumerate(tap.layers):
                for column, position in enumerate(record.positions):
                    rows += [plain_row(record, name, at, layer, column, position, rank) for rank in range(tap.ids.shape[2])]
    return rows


def plain_row(record: Record, name: str, at: int, layer: int, column: int, position: int, rank: int) -> dict[str, Any]:
    tap = record.taps[name]
    logprob, next_rank = tap.stats["next_logprob"][at, column], int(tap.stats["next_rank"][at, column])
    return {
        "prompt": record.index,
        "id": record.id,
        "tap": name,
        "layer": layer,
        "position": position,
        "rank": rank + 1,
        "token_id": int(tap.ids[at, column, rank]),
        "token": token_text(make_vocabulary(), int(tap.ids[at, column, rank])),
        "logprob": float(tap.logprobs[at, column, rank]),
        "entropy": float(tap.entropy[at, column]),
        "kl": None,
        "next_logprob": None if np.isnan(logprob) else float(logprob),
        "next_rank": next_rank or None,
        "best_logprob": None,
        "best_rank": None,
    }


def test_a_run_in_arrow_and_polars(run: Run) -> None:
    """Each row is what a loop over the records finds, in corpus order; nothing is rounded."""
    expected = plain_rows(run)
    assert run.to_arrow().to_pylist() == expected
    assert run.to_polars().to_dicts() == expected


def test_a_run_in_pandas(run: Run) -> None:
    """The same columns and numbers; what is null is missing."""
    frame = run.to_pandas()
    expected = plain_rows(run)
    assert list(frame.columns) == list(expected[0])
    for name in ("prompt", "id", "tap", "layer", "position", "rank", "token_id", "token", "logprob", "entropy"):
        assert frame[name].tolist() == [row[name] for row in expected]
    assert [None if value != value else value for value in frame["next_rank"]] == [row["next_rank"] for row in expected]
    assert frame["kl"].isna().all()


def test_a_run_without_records(tmp_path: Path) -> None:
    """An empty table; arrays of unknown size are refused."""
    make_run(tmp_path)
    run = Store(tmp_path)["demo"]
    assert len(run.to_arrow()) == len(run.to_pandas()) == len(run.to_polars()) == 0
    with pytest.raises(UsageError, match="run 'demo' has no records yet"):
        run.to_xarray()


def test_tokens_of_each_prompt_in_xarray(tmp_path: Path) -> None:
    """Prompts that track tokens of their own have them by number, two that are the same too."""
    folder, _ = make_run(tmp_path, 2)
    records = []
    for index, tracked in enumerate(([1, 4], [3, 3])):
        record = dataclasses.replace(make_record(index, tokens=3, vocabulary_size=12, tracked=2), tracked=tracked)
        records.append(with_stats(record, index))
    commit_outcomes(folder, *records)
    dataset = Store(tmp_path)["demo"].to_xarray()
    assert dataset["tracked"].values.tolist() == [1, 2]
    assert dataset["tracked_id"].transpose("place", "tracked").values.tolist() == [[1, 4]] * 3 + [[3, 3]] * 3
    assert dataset["tracked_rank"].dtype.kind == "i"
    found = dataset["tracked_rank"].sel(tap="resid_post").isel(place=slice(3, 6)).transpose("layer", "place", "tracked").values
    np.testing.assert_array_equal(found, records[1].taps["resid_post"].stats["tracked_rank"])


def test_a_result_in_each_library(run: Run) -> None:
    """Rows of a query, under the query's own names."""
    result = run.sql("SELECT tap, layer, count(*) AS n, max(entropy) AS most FROM metrics GROUP BY ALL ORDER BY ALL")
    rows = result.rows()
    assert result.to_polars().to_dicts() == rows
    assert result.to_pandas().to_dict("records") == rows
    dataset = result.to_xarray("tap", "layer")
    assert dict(dataset.sizes) == {"tap": 3, "layer": 2}
    for row in rows:
        place = dataset.sel(tap=row["tap"], layer=row["layer"])
        assert (int(place["n"]), float(place["most"])) == (row["n"], row["most"])
    assert np.isnan(dataset["most"].sel(tap="resid_pre", layer=3))
    flat = result.to_xarray()
    assert dict(flat.sizes) == {"row": len(rows)}
    assert list(flat["layer"].values) == [row["layer"] for row in rows]


def test_null_on_an_axis_has_a_place_of_its_own(run: Run) -> None:
    """Prompts without the key of --by: their numbers stand for themselves, not in the place of the last value."""
    result = run.sql("FROM (VALUES ('a', 0, 1), (NULL, 0, 2), ('b', 0, 3), (NULL, 1, 4)) AS given(split, layer, places)")
    dataset = result.to_xarray("split", "layer")
    assert [value if isinstance(value, str) else None for value in dataset["split"].values] == ["a", "b", None]
    np.testing.assert_array_equal(dataset["places"], [[1, np.nan], [3, np.nan], [2, 4]])
    assert dataset.identical(result.to_xarray("split", "layer", "split"))


def test_axes_that_do_not_tell_rows_apart(run: Run) -> None:
    """A name that is no column, and places with several rows, are refused with what there is."""
    result = run.sql("SELECT tap, layer, position FROM metrics")
    with pytest.raises(UsageError, match="no column 'head'; there are tap, layer, position"):
        result.to_xarray("tap", "head")
    with pytest.raises(UsageError, match="several rows have the same tap, layer; name more columns"):
        result.to_xarray("tap", "layer")


@pytest.mark.parametrize(("name", "method"), [("pandas", "to_pandas"), ("polars", "to_polars"), ("xarray", "to_xarray")])
def test_a_library_that_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    """The extra that brings it is named, for runs, results and records."""
    monkeypatch.setitem(sys.modules, name, None)
    owners: list[Any] = [run, run.sql("SELECT 1 AS one")]
    if name == "xarray":
        owners.append(run["prompt-2"])
    for owner in owners:
        with pytest.raises(UsageError, match=rf"{name} .*pip install 'raylens\[frames\]'"):
            getattr(owner, method)()


def test_reading_imports_none_of_them(run: Run) -> None:
    """Rows and notebooks come without them; of pandas, where it is installed, pyarrow itself makes use."""
    script = (
        "import sys, raylens\n"
        f"run = raylens.open({str(run.folder.root.parents[1])!r})['demo']\n"
        "run.to_arrow(), run._repr_html_(), run['prompt-2']._repr_html_()\n"
        "found = {'polars', 'xarray', 'datasets', 'torch', 'ray', 'redis'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == 0, done.stderr


@given(seed=st.integers(0, 99), positions=st.sampled_from([None, [0], [1, 3]]), dtype=st.sampled_from(["float16", "float32"]))
def test_a_record_in_xarray(seed: int, positions: list[int] | None, dtype: str) -> None:
    """Every number is found by the names of its place; a layer that a tap lacks holds none."""
    record = make_record(0, seed=seed, taps=TAPS, positions=positions, dtype=dtype, tracked=2, stats=True)
    dataset = record.to_xarray()
    assert dataset["ids"].dims == ("tap", "position", "layer", "rank")
    assert dataset.attrs == {"id": record.id, "index": 0, "text": record.text}
    assert dataset["token_id"].values.tolist() == [record.token_ids[position] for position in record.positions]
    for name, tap in record.taps.items():
        for at, layer in enumerate(tap.layers):
            for column, position in enumerate(record.positions):
                place = dataset.sel(tap=name, layer=layer, position=position)
                assert place["ids"].values.tolist() == tap.ids[at, column].tolist()
                assert place["logprobs"].values.tolist() == tap.logprobs[at, column].tolist()
                assert float(place["entropy"]) == float(tap.entropy[at, column])
                assert float(place["logsumexp"]) == float(tap.logsumexp[at, column])
                assert place["tracked_rank"].values.tolist() == tap.stats["tracked_rank"][at, column].tolist()
                np.testing.assert_array_equal(place["next_logprob"].values, tap.stats["next_logprob"][at, column])
    lacking = dataset.sel(tap="resid_pre", layer=3)
    assert (lacking["ids"] == -1).all()
    assert (lacking["next_rank"] == 0).all()
    assert lacking["logprobs"].isnull().all()


def test_a_run_in_xarray(run: Run) -> None:
    """The places of all records in corpus order, each with its prompt."""
    dataset = run.to_xarray()
    assert dataset["ids"].dims == ("tap", "place", "layer", "rank")
    records = list(run.records())
    places = [(record.index, record.id, position) for record in records for position in record.positions]
    found = zip(
        dataset["prompt"].values.tolist(), dataset["id"].values.tolist(), dataset["position"].values.tolist(), strict=True
    )
    assert list(found) == places
    logprobs = np.concatenate([record.taps["attn_out"].logprobs for record in records], axis=1).astype(np.float32)
    assert dataset["logprobs"].sel(tap="attn_out").transpose("layer", "place", "rank").values.tolist() == logprobs.tolist()


def test_the_schema_is_the_documented_one(run: Run) -> None:
    """docs/EXPORTS.md names each column once, in order."""
    text = (Path(__file__).parents[2] / "docs/EXPORTS.md").read_text()
    section = text.split("## Rows")[1].split("\n## ")[0]
    named = [name for line in section.splitlines() if line.startswith("| `") for name in line.split("|")[1].split("`")[1::2]]
    table: pa.Table = run.to_arrow()
    assert named == table.column_names
