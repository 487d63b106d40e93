"""Each export against a plain computation from the records."""

import csv
import io
import json
import math
from collections import defaultdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from raylens.storage.errors import UsageError
from raylens.storage.exports import FORMATS, logitlenskit, parquet, tuned_lens
from raylens.storage.exports import csv as csv_export
from raylens.storage.exports.logitlens4llms import FILES
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.store import Store
from tests.builders import commit_outcomes, make_failure, make_large_record, make_record, make_run
from tests.queried import with_stats

ALL = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
HOSTILE = 'a,"b"\r\n=1+1\u2028<script>'


def write_run(store: Path, *records: Record, layers: int | None = 4) -> Run:
    """A run of the records and a failure; the certificate says how many layers the model has."""
    folder, _ = make_run(store, prompts=len(records) + 1)
    commit_outcomes(folder, *records, make_failure(99))
    if layers is not None:
        folder.certificate.write_text(json.dumps({"layers": layers}))
    return Store(store)["demo"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two records with every tap, statistics, and an id that breaks careless files."""
    settings = {"taps": ALL, "stats": True, "layers": (0, 1, 2, 3), "vocabulary_size": 6}
    return write_run(tmp_path, make_record(0, id=HOSTILE, **settings), make_record(1, tokens=6, positions=[2, 5], **settings))


def written(writer: object, run: Run) -> bytes:
    file = io.BytesIO()
    writer(run, file)  # type: ignore[operator]
    return file.getvalue()


def test_csv_has_the_rows(run: Run) -> None:
    """Every text and number reads back, empty for null."""
    text = written(csv_export.write, run).decode()
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = run.to_arrow().to_pylist()
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        for name, value in wanted.items():
            if isinstance(value, float):
                assert np.float32(row[name]) == np.float32(value)
            else:
                assert row[name] == ("" if value is None else str(value))


def test_parquet_has_the_rows(tmp_path: Path, run: Run) -> None:
    """Plain types, which any reader knows."""
    path = tmp_path / "run.parquet"
    path.write_bytes(written(parquet.write, run))
    assert pq.read_table(path).to_pylist() == run.to_arrow().to_pylist()
    assert str(pq.read_schema(path).field("id").type) == "string"
    counted = duckdb.sql(f"SELECT count(*), max(rank) FROM '{path}' WHERE tap = 'attn_out' AND layer = 3").fetchall()
    assert counted == [(6 * 3, 3)]


def test_parquet_is_written_in_groups(tmp_path: Path) -> None:
    """A group ends with the batch that fills it; few rows share one."""
    small = write_run(tmp_path / "small", *(make_record(index) for index in range(20)))
    assert pq.ParquetFile(io.BytesIO(written(parquet.write, small))).num_row_groups == 1
    large = write_run(tmp_path / "large", make_large_record(0), make_record(1))
    file = pq.ParquetFile(io.BytesIO(written(parquet.write, large)))
    tap = 3000 * 6 * 24
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [tap, tap, 2 * 4 * 2 * 3]


def test_exports_of_a_run_without_records(tmp_path: Path) -> None:
    """A header, an empty table, an empty object: nothing that a reader stumbles over."""
    run = write_run(tmp_path)
    assert written(csv_export.write, run).decode().count("\n") == 1
    assert len(pq.read_table(io.BytesIO(written(parquet.write, run)))) == 0
    assert {name: written(write, run) for name, write in FILES.items()} == dict.fromkeys(FILES, b"{}")
    assert written(logitlenskit.write, run) == b""
    assert json.loads(written(tuned_lens.write, run))["logit"] == {}


def test_logitlenskit(run: Run) -> None:
    """Shape and values of V2: each of the k best with its probability at its layer, 0 elsewhere; tokens of positions lensed."""
    lines = [json.loads(line) for line in written(logitlenskit.write, run).splitlines()]
    for data, record in zip(lines, run.records(), strict=True):
        tap = record.taps["resid_post"]
        assert list(data) == ["meta", "layers", "input", "tracked", "topk"]
        assert data["meta"] == {"version": 2, "timestamp": run.manifest.created, "model": "demo", "prompt": record.id}
        assert data["layers"] == [0, 1, 2, 3]
        assert data["input"] == [f" t{record.token_ids[position]}" for position in record.positions]
        assert data["topk"] == [[[f" t{token}" for token in place] for place in layer] for layer in tap.ids.tolist()]
        for at, tracked in enumerate(data["tracked"]):
            best: dict[tuple[str, int], float] = defaultdict(float)
            for layer, column, rank in np.ndindex(tap.ids.shape):
                if column == at:
                    key = (f" t{tap.ids[layer, column, rank]}", layer)
                    best[key] = max(best[key], round(math.exp(tap.logprobs[layer, column, rank]), 5))
            assert set(tracked) == {token for token, _ in best}
            for token, trajectory in tracked.items():
                assert trajectory == pytest.approx([best.get((token, layer), 0.0) for layer in range(4)], abs=1.01e-5)


def test_tuned_lens_means(run: Run) -> None:
    """Means over all places, named as the inputs of blocks; the last block's output is the baseline."""
    found = json.loads(written(tuned_lens.write, run))
    records = list(run.records())
    places = [("resid_pre", 0), *(("resid_post", layer) for layer in range(4))]
    for number, (tap, at) in enumerate(places):
        entropy = np.concatenate([record.taps[tap].entropy[at] for record in records]).astype(float)
        logprobs = np.concatenate([record.taps[tap].stats["next_logprob"][at] for record in records]).astype(float)
        where, name = (found["logit"], f"layer_{number}") if number < 4 else (found["baseline"], "final")
        assert where["entropy"][name] == pytest.approx(entropy.mean())
        assert where["ce"][name] == pytest.approx(-np.nanmean(logprobs))
    assert set(found["logit"]) == set(found["baseline"]) == {"entropy", "ce"}
    assert list(found["logit"]["ce"]) == [f"layer_{number}" for number in range(4)]
    size = sum(len(f" t{token}") for record in records for token in record.token_ids)
    assert found["raylens"]["nats_to_bpb"] == pytest.approx(10 / size / math.log(2))
    assert found["raylens"]["places"] == {"entropy": 6, "ce": 4}


def test_tuned_lens_tells_the_divergence(tmp_path: Path) -> None:
    """The mean KL of each layer's place; of the baseline, whose KL to itself is 0, none."""
    records = [with_stats(make_record(index, taps=ALL, layers=(0, 1, 2, 3)), index) for index in range(2)]
    found = json.loads(written(tuned_lens.write, write_run(tmp_path, *records)))
    for number, (tap, at) in enumerate([("resid_pre", 0), *(("resid_post", layer) for layer in range(3))]):
        kl = np.concatenate([record.taps[tap].stats["kl"][at] for record in records]).astype(float)
        assert found["logit"]["kl"][f"layer_{number}"] == pytest.approx(kl.mean())
    assert len(found["logit"]["kl"]) == 4
    assert set(found["baseline"]) == {"entropy"}
    assert found["raylens"]["places"] == {"entropy": 8, "kl": 8}


def test_tuned_lens_says_what_the_means_are_of(tmp_path: Path) -> None:
    """The means stand under the kind of the lens, and beside them what run, model and interventions they are of."""
    plain = json.loads(written(tuned_lens.write, write_run(tmp_path, make_record(0), make_record(1))))
    assert "logit" in plain
    told = plain["raylens"]
    assert [told[name] for name in ("run", "model", "lens", "edited", "records")] == ["demo", "demo", "logit", False, 2]
    folder, _ = make_run(tmp_path, 1, name="other", identity={"lens": {"kind": "tuned"}, "intervention": {"file": "x"}})
    commit_outcomes(folder, make_record(0))
    other = json.loads(written(tuned_lens.write, Store(tmp_path)["other"]))
    assert other["tuned"].keys() == plain["logit"].keys()
    assert "logit" not in other
    assert [other["raylens"][name] for name in ("run", "lens", "edited", "records")] == ["other", "tuned", True, 1]


def test_tuned_lens_of_some_layers(tmp_path: Path) -> None:
    """A last layer that is not the model's is no baseline; what the run lacks is absent."""
    found = json.loads(written(tuned_lens.write, write_run(tmp_path, make_record(0, layers=(0, 2)))))
    assert found["baseline"] == {}
    assert {name: list(layers) for name, layers in found["logit"].items()} == {"entropy": ["layer_1", "layer_3"]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"taps": ("attn_out", "mlp_out")}, "lacks resid_post of the last layer, 3"),
        ({"layers": (0, 2)}, "lacks resid_post of the last layer, 3"),
        ({"positions": [0, 1]}, "prompt 'prompt-0' was not lensed at its last token.*--positions last"),
    ],
)
def test_logitlens4llms_needs_the_prediction(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    """A run that cannot say what the model predicts after the prompt is refused with what it lacks."""
    run = write_run(tmp_path, make_record(0, **changes))  # type: ignore[arg-type]
    for write in FILES.values():
        with pytest.raises(UsageError, match=problem):
            written(write, run)


def test_logitlens4llms_is_about_the_last_token(run: Run) -> None:
    """Of several positions that were lensed, prediction and layers are those of the last."""
    found = json.loads(written(FILES["all_layers.json"], run))
    for record in run.records():
        step, best = found[f"step_{record.index}"], record.taps["resid_post"].ids[:, -1, 0].tolist()
        assert step["predicted_token"] == f" t{best[-1]}"
        shown = [layer["block_output"][0][0] for layer in step["all_layers_data"].values()]
        assert shown == [f" t{token}" for token in best]
        assert record.taps["resid_post"].ids[-1, 0, 0] != best[-1], "so that the position matters"


def test_logitlenskit_needs_the_block_output(tmp_path: Path) -> None:
    """A run without it is refused with what it has."""
    with pytest.raises(UsageError, match="has no resid_post, which this format shows; it has attn_out"):
        written(logitlenskit.write, write_run(tmp_path, make_record(0, taps=("attn_out",))))


def test_every_format_is_documented() -> None:
    """docs/EXPORTS.md has a section for each."""
    text = (Path(__file__).parents[2] / "docs/EXPORTS.md").read_text()
    assert [name for name in FORMATS if f"\n## {name}\n" not in text] == []
