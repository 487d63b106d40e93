"""Attributions and heads of a real small model, stored: what queries, pictures and tables make of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylens.storage import named_queries
from raylens.storage.errors import UsageError
from raylens.storage.payload import decode_payload, encode_payload
from raylens.storage.plots import render
from raylens.storage.plots.attribution import attribution
from raylens.storage.plots.request import Request, for_record
from raylens.storage.plots.standing import models_own
from raylens.storage.plots.trajectory import trajectories
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.record_view import heads_table, table
from raylens.storage.run import Run
from raylens.storage.store import open_store
from raylens.storage.tables import LATER, LENS, About, by_tap, write_table
from raylens.storage.verify import examine
from raylens.storage.vocabulary import write_vocabulary
from raylens.storage.wanted import wanted
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.builders import commit_outcomes, make_record, make_run
from tests.command import raylens_command
from tests.queried import documented
from tests.tiny import WORDS, save_word_llama, sentences

TRACK = ("field:right", "id:7", "field:wrong")
STATS = ("attribution", "next_attribution", "best_attribution")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = save_word_llama(tmp_path_factory.mktemp("model"), layers=3)
    lens = LensSettings(
        3, positions="all", stats=STATS, track=TRACK, heads="0,2", taps=("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    worker = Worker(WorkerSettings(ModelSettings(str(model), dtype="float32"), lens))
    fields = [{"right": WORDS[n], "wrong": n, "k": f"k{n % 2}"} for n in range(5)]
    prompts = [Prompt(n, f"p{n}", text, metadata=fields[n]) for n, text in enumerate(sentences(5, 4))]
    outcomes = list(
        worker.run([*prompts, Prompt(5, "p5", "call me"), Prompt(6, "p6", "call me", metadata={"right": "nobody", "wrong": 1})])
    )
    identity = {"lens": {"top_k": 3, "track": list(TRACK), "stats": list(STATS)}}
    folder, _ = make_run(tmp_path_factory.mktemp("store"), 7, identity=identity, vocabulary_size=len(worker.vocabulary))
    folder.vocabulary.unlink()
    write_vocabulary(folder.vocabulary, worker.vocabulary)
    sent = [decode_payload(encode_payload(one), one.index, len(worker.vocabulary)) for one in outcomes]
    commit_outcomes(folder, *sent)
    return open_store(folder.root.parents[1])["demo"]


def records(run: Run) -> list[Record]:
    return list(run.records())


def test_each_prompt_has_its_own_tracked_tokens(run: Run) -> None:
    """A prompt without the field, or whose field is no token, is one failure that says so; the others are not touched."""
    assert [record.tracked for record in records(run)] == [[WORDS.index(WORDS[n]), 7, n] for n in range(5)]
    failures = {failure.id: failure for failure in run.failures()}
    assert failures.keys() == {"p5", "p6"}
    assert failures["p5"].kind == failures["p6"].kind == "input"
    assert failures["p5"].message == "--track field:right: the prompt has no field 'right' besides its text"
    assert "field:right: 'nobody': no single token of this model" in failures["p6"].message


@pytest.mark.parametrize(("names", "numbers"), [("field:wrong", [2]), (["field:wrong", "id:7"], [2, 1])])
def test_trajectory_of_a_token_of_each_prompt(run: Run, names: str | list[str], numbers: list[int]) -> None:
    """--token field:NAME is what was tracked of each prompt, exact at every place; beside others it is one of a set."""
    wanted: dict[int, list[tuple[int, float]]] = {}
    for record in records(run):
        lens = record.taps["resid_post"]
        ranks, logprobs = (lens.stats[name][..., numbers] for name in ("tracked_rank", "tracked_logprob"))
        for at, layer in enumerate(lens.layers):
            both = zip(ranks[at].min(axis=1), np.log(np.exp(logprobs[at].astype(np.float64)).sum(axis=1)), strict=True)
            wanted.setdefault(layer, []).extend((int(rank), float(logprob)) for rank, logprob in both)
    rows = run.query("trajectory", token=names).rows()
    assert [row["layer"] for row in rows] == sorted(wanted)
    for row in rows:
        of_layer = sorted(rank for rank, _ in wanted[row["layer"]])
        assert row["exact"]
        assert row["places"] == len(of_layer)
        assert row["median_rank"] == of_layer[(len(of_layer) - 1) // 2]
        assert row["share"] == pytest.approx(sum(rank <= 3 for rank in of_layer) / len(of_layer))
        assert row["logprob"] == pytest.approx(np.mean([logprob for _, logprob in wanted[row["layer"]]]), abs=1 / 32)


def test_places_of_a_token_of_each_prompt(run: Run) -> None:
    """Every place at which the prompt's own token is among the best."""
    wanted = [
        (record.id, record.positions[place], layer, WORDS[record.tracked[2]])
        for record in records(run)
        for at, layer in enumerate(record.taps["resid_post"].layers)
        for place, ids in enumerate(record.taps["resid_post"].ids[at].tolist())
        if record.tracked[2] in ids
    ]
    rows = run.query("token", token="field:wrong", rank=3).rows()
    assert wanted
    assert sorted((row["id"], row["position"], row["layer"], row["token"]) for row in rows) == sorted(wanted)


def test_pictures_of_a_token_of_each_prompt(run: Run, tmp_path: Path) -> None:
    """One command draws each prompt's own tokens, as if they had been named prompt by prompt, in the order given."""
    store = ["--store", str(run.folder.root.parents[1])]
    both = ["--token", "id:7", "--token", "field:wrong"]
    for kind in ("trajectory", "attribution"):
        all_drawn = raylens_command("plot", "demo", "--kind", kind, "--all", *both, "-o", str(tmp_path / kind), *store)
        assert all_drawn.returncode == 0, all_drawn.stderr
        assert [path.name for path in sorted((tmp_path / kind).iterdir())] == [f"{n}.png" for n in range(5)]
        record = records(run)[2]
        request = Request(f"{run.manifest.title} · run {run.name}", tokens=[7, record.tracked[2]])
        (picture,) = render(record, kind, "png", request, vocabulary=run.vocabulary)
        assert (tmp_path / kind / "2.png").read_bytes() == picture


def test_pictures_of_a_token_that_one_prompt_has(run: Run, tmp_path: Path) -> None:
    """Others, of which it was not tracked, are left out."""
    options = ["--kind", "attribution", "--token", "id:2", "-o", str(tmp_path), "--store", str(run.folder.root.parents[1])]
    done = raylens_command("plot", "demo", "--all", *options)
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (0, ["2.png"])
    assert "4 of 5 prompts are not drawn: token" in done.stderr
    assert "was not tracked with --stats attribution in prompt 'p0'" in done.stderr


def test_a_pair_that_is_one_token_in_some_prompt(run: Run) -> None:
    """Its lead over itself is nothing, as the query has it; a trajectory follows it once."""
    record = records(run)[2]
    both = for_record(Request("m"), record, None, wanted(["field:wrong", "field:right"], run))
    assert both.tokens == [2, 2]
    picture = attribution(record, run.vocabulary, both)
    assert not np.nan_to_num(picture.values).any()
    assert trajectories(record, run.vocabulary, both).names == (WORDS[2],)


def test_a_record_with_fewer_tracked_tokens_than_its_run(tmp_path: Path) -> None:
    """A frame may say what it likes: a picture of it is refused, and no query counts it among the exact ones."""
    folder, _ = make_run(tmp_path, 2, identity={"lens": {"track": ["id:1", "field:own"]}})
    commit_outcomes(folder, make_record(0, tracked=2, stats=True), make_record(1, tracked=0))
    odd = open_store(tmp_path)["demo"]
    of_own = wanted("field:own", odd)
    with pytest.raises(UsageError, match="has only 0 of the tracked tokens of its run"):
        for_record(Request("m"), list(odd.records())[1], None, of_own)
    (first, _) = odd.records()
    assert {row["places"] for row in odd.query("trajectory", token="field:own", tap="all").rows()} == {len(first.positions)}


def test_a_field_that_was_not_tracked(run: Run) -> None:
    """A prompt's field is known to a query only where --track named it."""
    with pytest.raises(
        UsageError, match="token 'field:other': not a tracked token of run 'demo'; it tracks 'field:right', 'id:7'"
    ):
        run.query("trajectory", token="field:other").rows()


def terms(run: Run, number: int, minus: int | None = None) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for record in records(run):
        for tap, lens in record.taps.items():
            for at, layer in enumerate(lens.layers):
                values = lens.stats["attribution"][at].astype(np.float64)
                found.setdefault((tap, layer), []).extend(values[:, number] - (0 if minus is None else values[:, minus]))
    return found


@pytest.mark.parametrize(
    ("asked", "number", "minus"),
    [
        ({"to": "field:right"}, 0, None),
        ({"to": "field:right", "minus": "field:wrong"}, 0, 2),
        ({"to": 7, "minus": "field:wrong"}, 1, 2),
        ({"to": WORDS[7]}, 1, None),
    ],
)
def test_the_query_against_the_records(run: Run, asked: dict[str, Any], number: int, minus: int | None) -> None:
    """Mean, interval and share above 0 by tap and layer; heads come after the taps of their layer."""
    rows = run.query("attribution", **asked).rows()
    wanted = terms(run, number, minus)
    assert [(row["layer"], row["tap"]) for row in rows[:8]] == [
        (0, tap) for tap in ("resid_pre", "attn_out", "mlp_out", "resid_post", "head_0", "head_1", "head_2", "head_3")
    ]
    assert {(row["tap"], row["layer"]) for row in rows} == wanted.keys()
    for row in rows:
        values = np.array(wanted[row["tap"], row["layer"]])
        half = 2.0930 * values.std(ddof=1) / len(values) ** 0.5  # Student's t of 19 degrees of freedom
        assert row["places"] == len(values) == 20
        np.testing.assert_allclose(
            [row["attribution"], row["low"], row["high"]], values.mean() + np.array([0, -half, half]), rtol=1e-5, atol=1e-6
        )
        assert row["positive"] == pytest.approx((values > 0).mean())
        assert row["error"] is None if row["tap"] not in ("resid_post",) else row["error"] < 1e-4


@pytest.mark.parametrize(("count", "t"), [(2, 12.7062), (3, 4.3027), (31, 2.0423), (32, 2.0395), (121, 1.9799), (1001, 1.9623)])
def test_the_interval_of_few_and_many(run: Run, count: int, t: float) -> None:
    """Student's t, from tables; of one place there is none."""
    sql = (Path(named_queries.__file__).parent / "queries" / "attribution.sql").read_text()
    places = (
        "SELECT NULL AS split, 'attn_out' AS tap, 0 AS layer, NULL AS attribution_error, [0.0] AS attribution, "
        f"(range % 2)::DOUBLE AS best_attribution FROM range({count})"
    )
    asked = sql.replace("WITH terms", f"WITH places AS ({places}), terms")
    (row,) = run.sql(asked, {"to": None, "minus": None}).rows()
    values = np.arange(count) % 2
    assert row["high"] - row["attribution"] == pytest.approx(t * values.std(ddof=1) / count**0.5, rel=1e-4)
    (alone,) = run.sql(asked.replace(f"range({count})", "range(1)"), {"to": None, "minus": None}).rows()
    assert alone["low"] is alone["high"] is None


def test_the_query_of_best_tokens(run: Run) -> None:
    """Without a token it is about the model's own; split and places as of other queries."""
    rows = run.query("attribution", tap="head_2", layers="2", positions="last", by="k").rows()
    for row, key in zip(rows, ("k0", "k1"), strict=True):
        values = [float(one.taps["head_2"].stats["best_attribution"][1, -1]) for one in records(run) if one.metadata["k"] == key]
        assert (row["split"], row["places"], row["attribution"]) == (key, len(values), pytest.approx(np.mean(values)))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"to": "field:other"}, "not a tracked token of run 'demo'; it tracks 'field:right', 'id:7', 'field:wrong'"),
        ({"to": "id:8"}, "not a tracked token"),
        ({"minus": "id:7"}, "minus goes only with to, another tracked token"),
        ({"tap": "head_9"}, "it has resid_pre, attn_out, mlp_out, resid_post, head_0"),
    ],
)
def test_questions_that_cannot_be(run: Run, asked: dict[str, Any], words: str) -> None:
    """Each names what the run has."""
    with pytest.raises(UsageError, match=words):
        run.query("attribution", **asked).rows()


def test_columns_of_the_query_are_as_documented(run: Run) -> None:
    """Names and order."""
    assert run.query("attribution", by="k").to_arrow().schema.names == ["split", *documented("attribution")]


def test_a_run_without_attributions(tmp_path: Path) -> None:
    """Is told what it lacks."""
    folder, _ = make_run(tmp_path, 1, identity={"lens": {"track": ["id:1"]}})
    commit_outcomes(folder, make_record(0))
    bare = open_store(tmp_path)["demo"]
    for asked, words in (({}, "stats best_attribution, which is not"), ({"to": 1}, "it needs stats attribution, which is not")):
        with pytest.raises(UsageError, match=words):
            bare.query("attribution", **asked).rows()


def test_sql_and_arrays(run: Run) -> None:
    """The view of tracked tokens has a row a name, in the order of --track, and xarray the axis."""
    rows = run.sql(
        "SELECT number, token_id, attribution FROM tracked "
        "WHERE prompt = 3 AND position = 2 AND tap = 'head_1' AND layer = 2 ORDER BY number"
    ).rows()
    record = records(run)[3]
    assert [(row["number"], row["token_id"]) for row in rows] == [(1, record.tracked[0]), (2, 7), (3, 3)]
    assert [row["attribution"] for row in rows] == record.taps["head_1"].stats["attribution"][1, 2].tolist()
    array = record.to_xarray()["attribution"].sel(tap="head_1", layer=2, position=2)
    assert array.values.tolist() == [row["attribution"] for row in rows]


def test_tables_from_before_there_were_attributions(tmp_path: Path) -> None:
    """They lack columns, are not damaged for it, and are asked together with others."""
    folder, _ = make_run(tmp_path, 2)
    commit_outcomes(folder, make_record(0))
    (path,) = folder.tables.glob("*.lens.parquet")
    old_schema = pa.schema([field for field in LENS if field.name not in LATER])
    about = msgspec.json.decode(pq.read_metadata(path).metadata[b"raylens"], type=About)
    rows = pq.read_table(path).select(old_schema.names).cast(old_schema)
    path.unlink()
    write_table(path, by_tap(rows), old_schema, about)
    commit_outcomes(folder, make_record(1))
    old = open_store(tmp_path)["demo"]
    assert old.sql("SELECT count(*) AS places, count(best_attribution) AS some FROM metrics").rows() == [
        {"places": 32, "some": 0}
    ]
    assert examine(folder).damage == []


def test_the_picture_against_the_record(run: Run) -> None:
    """A column a write, heads last, grey where a layer has none; of one token, of one less another, of the best one."""
    record, vocabulary = records(run)[2], run.vocabulary
    drawn = attribution(record, vocabulary, Request("m", tokens=[2, 7], positions=[1]))
    assert (drawn.layers, drawn.taps) == ((0, 1, 2), ("resid_pre", "attn_out", "mlp_out", "head_0", "head_1", "head_2", "head_3"))
    stats = record.taps["head_1"].stats["attribution"]
    assert drawn.values[2, 4] == stats[1, 1, 0] - stats[1, 1, 1]
    assert np.isnan(drawn.values[1, 3:]).all()
    assert np.isnan(drawn.values[1:, 0]).all()
    assert not np.isnan(drawn.values[:, 1:3]).any()
    best = attribution(record, vocabulary, Request("m"))
    assert best.values[1, 2] == record.taps["mlp_out"].stats["best_attribution"][1, -1]
    known = models_own(record)[-1]
    assert ("the predicted token" in best.captions[1], "which is not stored" in best.captions[1]) == (known, not known)
    without = replace(record, taps={tap: lens for tap, lens in record.taps.items() if tap != "resid_post"})
    assert "the token that the model predicts, which is not stored" in attribution(without, vocabulary, Request("m")).captions[1]
    with pytest.raises(UsageError, match="stat 'next': does not go with tokens of one's own"):
        attribution(record, vocabulary, Request("m", stat="next", tokens=[2]))
    following = attribution(record, vocabulary, Request("m", stat="next", positions=[0], tap="mlp_out"))
    assert following.values[:, 0].tolist() == record.taps["mlp_out"].stats["next_attribution"][:, 0].tolist()


def test_the_picture_says_what_sums_to_what(run: Run) -> None:
    """Of a pair the error is that of both; a write that has no column is named as one that is part of it."""
    record, vocabulary = records(run)[2], run.vocabulary
    error = float(record.taps["resid_post"].stats["attribution_error"][-1, -1])
    one = attribution(record, vocabulary, Request("m", tokens=[2])).captions[1]
    assert one.endswith(f"; all that was written up to layer 2 sums to what the residual there adds, within {error:.1g}")
    two = attribution(record, vocabulary, Request("m", tokens=[2, 7])).captions[1]
    assert two.endswith(f"; all that was written up to layer 2 sums to what the residual there adds, within {2 * error:.1g}")
    bare = replace(record, taps={tap: lens for tap, lens in record.taps.items() if tap != "resid_pre"})
    assert (
        "all that was written up to layer 2 (not shown: resid_pre) sums"
        in attribution(bare, vocabulary, Request("m")).captions[1]
    )


def test_a_picture_has_no_negative_zero(run: Run) -> None:
    """What rounds to nothing looks alike, whichever way it goes."""
    record = records(run)[2]
    stats = dict(record.taps["mlp_out"].stats)
    stats["best_attribution"] = np.full_like(stats["best_attribution"], -0.004)
    small = replace(record, taps={**record.taps, "mlp_out": replace(record.taps["mlp_out"], stats=stats)})
    (data,) = render(small, "attribution", "svg", Request("m", tap="mlp_out"), vocabulary=run.vocabulary)
    assert b">+0.00<" in data
    assert b"-0.00" not in data


@pytest.mark.parametrize("kind", ["grid", "rank", "trajectory", "attribution"])
def test_a_head_may_be_drawn_as_any_tap(run: Run, kind: str) -> None:
    """By its own name, of the layers it has; and a tap by LogitLens4LLMs's name."""
    for tap in ("head_3", "mlp_output"):
        (data,) = render(records(run)[2], kind, "svg", Request("m", tap=tap), vocabulary=run.vocabulary)
        assert data.startswith(b"<?xml")
    with pytest.raises(UsageError, match=r"tap 'head_9' is not in prompt 'p2'; it has resid_pre, .*, head_3"):
        render(records(run)[2], kind, "svg", Request("m", tap="head_9"), vocabulary=run.vocabulary)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("m", tokens=[9]), "was not tracked with --stats attribution"),
        (Request("m", tokens=[1, 2, 7]), "3 tokens chosen"),
        (Request("m", stat="next"), "no token follows position 3"),
        (Request("m", stat="rank"), "can be coloured by best, next"),
    ],
)
def test_pictures_that_cannot_be(run: Run, request_: Request, words: str) -> None:
    """Each is refused with what to choose."""
    with pytest.raises(UsageError, match=words):
        attribution(records(run)[2], run.vocabulary, request_)


def test_commands(run: Run, tmp_path: Path) -> None:
    """show has a table of heads, which are no columns among the taps; plot draws, query prints."""
    store = ["--store", str(run.folder.root.parents[1])]
    shown = raylens_command("show", "demo/p1", *store)
    assert shown.returncode == 0, shown.stderr
    assert "layer  head    tokens" in shown.stdout
    picture = tmp_path / "a.png"
    drawn = raylens_command("plot", "demo/p1", "--kind", "attribution", "--token", "id:7", "-o", str(picture), *store)
    assert (drawn.returncode, picture.read_bytes()[:4]) == (0, b"\x89PNG"), drawn.stderr
    asked = raylens_command("query", "demo", "attribution", "--to", "id:7", "--minus", "field:wrong", "--json", *store)
    assert (asked.returncode, len(asked.stdout.splitlines())) == (0, 18), asked.stderr
    header, rows = heads_table(records(run)[1], run.vocabulary, 3, 1)
    assert (header, len(rows), [row[:2] for row in rows[:2]]) == (
        ["layer", "head", "tokens"],
        8,
        [["0", "head_0"], ["0", "head_1"]],
    )
    assert table(records(run)[1], run.vocabulary, 3, 1)[0] == ["layer", "resid_pre", "attn_out", "mlp_out", "resid_post"]


def test_outcomes_are_those_of_the_worker(run: Run) -> None:
    """What was stored reads back, with heads and attributions, to the last bit."""
    assert all(not isinstance(run[one.id], Failure) for one in records(run))
    one = records(run)[0]
    assert replace(one, vocabulary=None).taps["head_3"].layers == (0, 2)
    assert tuple(one.taps["head_3"].stats) == ("tracked_logprob", "tracked_rank", *STATS, "attribution_error")
