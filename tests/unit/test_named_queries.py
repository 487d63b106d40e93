"""Each named query against a plain computation from the records."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylens.storage.errors import UsageError
from raylens.storage.named_queries import named_queries
from raylens.storage.record import Failure, Record
from raylens.storage.run import Run
from raylens.storage.selection import CHOOSING, NEEDS, OPTIONS
from raylens.storage.store import Store, open_store
from raylens.storage.taps import TAPS
from tests.builders import commit_outcomes, make_failure, make_record, make_run
from tests.queried import KEYS, RESIDUAL, decided, documented, grouped, places, same_rows, text, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One token a place, no statistics."""
    return write_run(tmp_path_factory.mktemp("bare"), seed=1, k=1, stats=False)


def query(run: Run, name: str, **options: Any) -> list[dict[str, Any]]:
    return run.query(name, **options).rows()


@pytest.mark.parametrize("which", ["run", "bare"])
@pytest.mark.parametrize("tokens", [[2], [4, 0]])
def test_token(which: str, tokens: list[int], request: pytest.FixtureRequest) -> None:
    """Every place where a token is among the r best, in corpus order."""
    run: Run = request.getfixturevalue(which)
    rank = min(2, len(next(places(run))["ids"]))
    wanted = [
        {
            **{name: place[name] for name in ("id", "position", "tap", "layer")},
            "input": text(run, place["record"].token_ids[place["position"]]),
            "rank": place["ids"].index(token) + 1,
            "token": text(run, token),
            "logprob": place["logprobs"][place["ids"].index(token)],
            "order": (place["index"], place["position"], place["layer"], TAPS.index(place["tap"]), place["ids"].index(token)),
        }
        for place in places(run)
        for token in tokens
        if token in place["ids"][:rank] and place["layer"] >= 1
    ]
    wanted.sort(key=lambda row: row.pop("order"))
    names = [text(run, token) for token in tokens]
    assert wanted
    same_rows(query(run, "token", token=names, tap="all", layers="1:", rank=rank), wanted)
    same_rows(query(run, "token", token=tokens, tap="all", layers="1:4", rank=rank, limit=3), wanted[:3])
    apart = [row for row in wanted if row["layer"] != 2]
    for chosen in ("1,-1", [1, -1], (1, -1)):
        same_rows(query(run, "token", token=tokens, tap="all", layers=chosen, rank=rank), apart)
    same_rows(
        query(run, "token", token=np.array(tokens, np.uint32), tap="all", layers=np.array([1, -1]), rank=np.int64(rank)), apart
    )


@pytest.mark.parametrize("key", KEYS)
def test_token_shows_a_metadata_key_of_any_name(run: Run, key: str) -> None:
    """The value of the key stands beside each place; nothing where the prompt has no such key."""
    values = {record.id: record.metadata.get(key) for record in run.records()}
    found = query(run, "token", token=2, tap="all", rank=3, by=key)
    assert {row["split"] for row in found} == {f"{key}0", f"{key}1", None}
    assert all(row["split"] == values[row["id"]] for row in found)


def of_tokens(first: int | None, end: int | None) -> Callable[[Record], list[int]]:
    """Those lensed in a slice of a record's tokens."""
    return lambda record: [position for position in record.positions if position in range(len(record.token_ids))[first:end]]


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("last", lambda record: record.positions[-1:]),
        ("last:2", lambda record: record.positions[-2:]),
        ("last:99", lambda record: record.positions),
        ("all", lambda record: record.positions),
        ("1:3", of_tokens(1, 3)),
        ("4", of_tokens(4, 5)),
        ("-3", of_tokens(-3, -2)),
        ("-3:", of_tokens(-3, None)),
        (":-2", of_tokens(None, -2)),
        ("1:-2", of_tokens(1, -2)),
        ("-4:-2", of_tokens(-4, -2)),
        ((1, 3), of_tokens(1, 3)),
    ],
)
def test_positions(run: Run, positions: str | tuple[int, int], chosen: Callable[[Record], list[int]]) -> None:
    """--positions counts the prompt's tokens from either end, or the lensed ones from theirs, in every query that takes it."""
    wanted = sorted((record.index, position) for record in run.records() for position in chosen(record))
    indexes = {record.id: record.index for record in run.records()}
    assert [(indexes[row["id"]], row["position"]) for row in query(run, "depths", positions=positions)] == wanted
    assert {row["places"] for row in query(run, "layers", positions=positions)} == {len(wanted)}


@pytest.mark.parametrize("key", [None, "a.b"])
@pytest.mark.parametrize("which", ["run", "bare"])
def test_depth(which: str, key: str | None, request: pytest.FixtureRequest) -> None:
    """The histogram counts each place once at its first and once at its stable layer; shares go up to 1."""
    run: Run = request.getfixturevalue(which)
    all_found = decided(run, key=key)
    wanted = []
    for split in sorted({place["split"] for place in all_found}, key=lambda value: (value is None, value)):
        found = [place for place in all_found if place["split"] == split]
        for layer in range(4):
            counts = {kind: [place[kind]["layer"] for place in found] for kind in ("first", "stable")}
            wanted.append({"layer": layer, **({"split": split} if key else {})})
            for kind, layers in counts.items():
                wanted[-1][kind] = layers.count(layer)
                wanted[-1][f"{kind}_share"] = sum(one <= layer for one in layers) / len(layers)
    assert any(place["first"]["layer"] < place["stable"]["layer"] for place in all_found)
    same_rows(query(run, "depth", **({"by": key} if key else {})), wanted)


@pytest.mark.parametrize("which", ["run", "bare"])
def test_depths_and_flips(which: str, request: pytest.FixtureRequest) -> None:
    """Each place with its tokens; flips are those that changed, the latest and surest first."""
    run: Run = request.getfixturevalue(which)
    found = sorted(decided(run), key=lambda place: (place["index"], place["position"]))
    head = [
        {
            "id": place["id"],
            "position": place["position"],
            "input": text(run, place["record"].token_ids[place["position"]]),
            "logprob": place["logprobs"][0],
        }
        for place in found
    ]
    depths = [
        {**row, "final": text(run, place["final"]), "first": place["first"]["layer"], "stable": place["stable"]["layer"]}
        for row, place in zip(head, found, strict=True)
    ]
    same_rows(query(run, "depths"), depths)
    flips = [
        {
            **row,
            "layer": place["stable"]["layer"],
            "before": text(run, place["before"]["ids"][0]),
            "after": text(run, place["final"]),
        }
        for row, place in zip(head, found, strict=True)
        if place["before"] is not None
    ]
    flips.sort(key=lambda row: (-row["layer"], -row["logprob"]))  # stable: then in corpus order
    assert flips
    same_rows(query(run, "flips", limit=1000), flips)


@pytest.mark.parametrize("key", [None, "größe ✓"])
@pytest.mark.parametrize("which", ["run", "bare"])
def test_layers(which: str, key: str | None, request: pytest.FixtureRequest) -> None:
    """Means, 10, 50 and 90 % and agreement; nothing for a statistic that the run lacks."""
    run: Run = request.getfixturevalue(which)
    wanted = []
    for (split, layer, tap), found in grouped(places(run, key), "split", "layer", "tap").items():
        row: dict[str, Any] = {"tap": tap, "layer": layer, "places": len(found), **({"split": split} if key else {})}
        row["agreement"] = sum(place["final_rank"] == 1 for place in found) / len(found)
        for name in ("entropy", "kl"):
            values = [float(place[name]) for place in found if name in place]
            cuts = np.quantile(values, [0.1, 0.5, 0.9]).tolist() if values else [None] * 3
            row[name] = float(np.mean(values)) if values else None
            row.update(zip((f"{name}_10", f"{name}_50", f"{name}_90"), cuts, strict=True))
        wanted.append(row)
    wanted.sort(key=lambda row: (row.get("split") is None, row.get("split"), row["layer"], TAPS.index(row["tap"])))
    same_rows(query(run, "layers", **({"by": key} if key else {})), wanted)


@pytest.mark.parametrize(
    ("which", "tokens", "exact"),
    [
        ("run", [1], True),
        ("run", [4, 1], True),
        ("run", [1, 2], False),
        ("bare", [2], False),
        ("bare", [2, 5], False),
    ],
)
def test_trajectory(which: str, tokens: list[int], exact: bool, request: pytest.FixtureRequest) -> None:
    """Exact where all of the set was tracked; else from the k best, where a rank that is not known is none."""
    run: Run = request.getfixturevalue(which)
    wanted = []
    for (layer, tap), found in grouped(places(run), "layer", "tap").items():
        ranks, logprobs = [], []
        for place in found:
            tracked = place["record"].tracked
            known = {
                token: (place["tracked_rank"][tracked.index(token)], place["tracked_logprob"][tracked.index(token)])
                if exact
                else (place["ids"].index(token) + 1, place["logprobs"][place["ids"].index(token)])
                for token in tokens
                if exact or token in place["ids"]
            }
            ranks.append(min((int(rank) for rank, _ in known.values()), default=10**9))
            if known:
                logprobs.append(math.log(sum(math.exp(logprob) for _, logprob in known.values())))
        median = sorted(ranks)[math.ceil(len(ranks) / 2) - 1]
        k = len(found[0]["ids"])
        wanted.append(
            {
                "tap": tap,
                "layer": layer,
                "places": len(found),
                "share": sum(rank <= k for rank in ranks) / len(ranks),
                "median_rank": median if median < 10**9 else None,
                "logprob": float(np.mean(logprobs)) if logprobs else None,
                "exact": exact,
            }
        )
    wanted.sort(key=lambda row: (row["layer"], TAPS.index(row["tap"])))
    same_rows(query(run, "trajectory", token=tokens, tap="all"), wanted)


@pytest.mark.parametrize("which", ["run", "bare"])
def test_promoted(which: str, request: pytest.FixtureRequest) -> None:
    """The most frequent top-1 tokens, ties to the lower id."""
    run: Run = request.getfixturevalue(which)
    wanted = []
    for (layer, tap), found in sorted(
        grouped(places(run), "layer", "tap").items(), key=lambda item: (item[0][0], TAPS.index(item[0][1]))
    ):
        counts = Counter(place["ids"][0] for place in found)
        for rank, (token, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:2], 1):
            head = {"tap": tap, "layer": layer, "rank": rank, "token_id": token, "token": text(run, token)}
            wanted.append({**head, "places": count, "share": count / len(found)})
    same_rows(query(run, "promoted", tap="all", rank=2), wanted)


@pytest.mark.parametrize("which", ["run", "bare"])
def test_handoff(which: str, request: pytest.FixtureRequest) -> None:
    """Each place is counted at the part after which the final token led first, and at the one since which it leads."""
    run: Run = request.getfixturevalue(which)
    found = decided(run, RESIDUAL)
    names = {"resid_pre": "embedding", "resid_mid": "attention", "resid_post": "mlp"}
    steps = [(0, "resid_pre"), *((layer, tap) for layer in range(4) for tap in RESIDUAL[1:])]
    wanted = []
    for layer, tap in steps:
        row: dict[str, Any] = {"layer": layer, "part": names[tap]}
        for kind in ("first", "stable"):
            row[kind] = sum((place[kind]["layer"], place[kind]["tap"]) == (layer, tap) for place in found)
            row[f"{kind}_share"] = row[kind] / len(found)
        wanted.append(row)
    same_rows(query(run, "handoff"), wanted)


def test_trajectory_of_what_is_next_to_impossible(tmp_path: Path) -> None:
    """A logprob whose probability is no number above 0 is told as it is stored."""
    run = write_run(tmp_path, stats=True, track=["t1"])
    folder, _ = make_run(tmp_path, 2, name="tiny", identity={"lens": {"track": ["id:1"]}})
    record = next(run.records())
    taps = {
        tap: dataclasses.replace(lens, stats={**lens.stats, "tracked_logprob": np.full_like(lens.stats["tracked_logprob"], -800)})
        for tap, lens in record.taps.items()
    }
    commit_outcomes(folder, dataclasses.replace(record, index=0, taps=taps))
    rows = query(open_store(tmp_path)["tiny"], "trajectory", token=f"id:{record.tracked[0]}")
    assert rows
    assert {row["logprob"] for row in rows if row["exact"]} == {-800.0}


def test_handoff_without_the_embedding(tmp_path: Path) -> None:
    """What leads after the first attention may have led before it: the part is named so."""
    run = write_run(tmp_path, taps=("attn_out", "resid_mid", "mlp_out", "resid_post"))
    parts = [(row["layer"], row["part"]) for row in query(run, "handoff")]
    assert parts[:3] == [(0, "embedding or attention"), (0, "mlp"), (1, "attention")]
    assert {part for _, part in parts[1:]} == {"attention", "mlp"}


def test_outliers_among_what_is_else_alike(tmp_path: Path) -> None:
    """Where all but one place are the same, that one is told, by at least the step in which values are stored."""
    folder, _ = make_run(tmp_path, 20)
    records = [make_record(index, layers=(0,), tokens=1, seed=1) for index in range(20)]
    odd = {tap: dataclasses.replace(lens, entropy=lens.entropy + 9) for tap, lens in records[3].taps.items()}
    records[3] = dataclasses.replace(records[3], taps=odd)
    commit_outcomes(folder, *records)
    (found,) = query(open_store(tmp_path)["demo"], "outliers")
    assert (found["id"], found["distance"]) == (records[3].id, 9 * 64)


@pytest.mark.parametrize("key", [None, "it's"])
def test_outliers(run: Run, key: str | None) -> None:
    """Distance from the median in quartile ranges, the farthest first."""
    wanted = []
    for (split, layer), found in grouped(
        (place for place in places(run, key) if place["tap"] == "mlp_out"), "split", "layer"
    ).items():
        for metric in ("entropy", "kl"):
            low, median, high = np.quantile([float(place[metric]) for place in found], [0.25, 0.5, 0.75]).tolist()
            for place in found:
                value = float(place[metric])
                wanted.append(
                    {
                        **({"split": split} if key else {}),
                        "id": place["id"],
                        "position": place["position"],
                        "input": text(run, place["record"].token_ids[place["position"]]),
                        "tap": "mlp_out",
                        "layer": layer,
                        "metric": metric,
                        "value": value,
                        "median": median,
                        "distance": (value - median) / (high - low),
                    }
                )
    found = query(run, "outliers", tap="mlp_out", limit=10_000, **({"by": key} if key else {}))
    distances = [abs(row["distance"]) for row in found]
    assert distances == sorted(distances, reverse=True)

    def place_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["id"], row["position"], row["layer"], row["metric"]

    same_rows(sorted(found, key=place_of), sorted(wanted, key=place_of))


def test_failures(run: Run) -> None:
    """By kind, with the first of each; a share is of all prompts that ended."""
    first = {"kind": "crash", "prompts": 1, "share": 1 / 9, "example": "prompt-8", "message": "died"}
    second = {"kind": "model", "prompts": 1, "share": 1 / 9, "example": "x/y", "message": "NaN"}
    same_rows(query(run, "failures"), [first, second])
    split = [{"split": "kind0", **second, "share": 1 / 4}, {"split": None, **first, "share": 1 / 2}]
    assert sum(record.metadata.get("kind") == "kind0" for record in run.records()) == 4
    assert isinstance(run["x/y"], Failure)
    split[0]["share"] = 1 / 5
    same_rows(query(run, "failures", by="kind"), split)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 5), layers=st.integers(1, 5), stats=st.booleans())
def test_depths_of_any_run(tmp_path_factory: pytest.TempPathFactory, seed: int, k: int, layers: int, stats: bool) -> None:
    """Depth and hand-off agree with a walk over the layers, whatever the numbers of layers and tokens."""
    run = write_run(tmp_path_factory.mktemp("any"), seed=seed, k=k, layers=layers, stats=stats, prompts=5)
    found = sorted(decided(run), key=lambda place: (place["index"], place["position"]))
    wanted = [(place["first"]["layer"], place["stable"]["layer"]) for place in found]
    assert [(row["first"], row["stable"]) for row in query(run, "depths")] == wanted
    parts = Counter((place["stable"]["layer"], place["stable"]["tap"] == "resid_post") for place in decided(run, RESIDUAL))
    handoff = query(run, "handoff")
    assert sum(row["stable"] for row in handoff) == parts.total()
    for (layer, by_mlp), count in parts.items():
        assert count == sum(row["stable"] for row in handoff if row["layer"] == layer and (row["part"] == "mlp") == by_mlp)


@settings(max_examples=25)
@given(key=st.text(max_size=8), value=st.text(max_size=8), other=st.text(max_size=8))
def test_a_key_of_any_name(tmp_path_factory: pytest.TempPathFactory, key: str, value: str, other: str) -> None:
    """Metadata is split by the very key, whatever characters it has."""
    folder, _ = make_run(tmp_path_factory.mktemp("keys"), 2)
    metadata = {other: "other", key: value, "nested": {key: "inner"}} if key != "nested" else {key: value}
    commit_outcomes(folder, make_record(0, metadata=metadata), make_record(1, metadata={"": 1} if key else {}))
    run = open_store(folder.root.parent.parent)["demo"]
    assert {row["id"]: row["split"] for row in query(run, "depths", by=key)} == {"prompt-0": value, "prompt-1": None}


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("nothing", {}, "no query 'nothing'; there are attribution, depth, depths,"),
        ("depth", {"tap": "mlp_out"}, "tap: query depth does not take it; it takes positions, by"),
        ("token", {}, "query token needs token"),
        ("token", {"token": None}, "query token needs token"),
        ("promoted", {"rank": None}, "rank None: give a number from 1"),
        ("layers", {"layers": None}, "layers 'None': 'None' is not a layer; write all"),
        ("token", {"token": "Paris"}, "no single token of this run"),
        ("token", {"token": "T7"}, r"similar ones are ·t7 \(id:7\)"),
        ("token", {"token": " t7x"}, r"similar ones are ·t7 \(id:7\)"),
        ("token", {"token": []}, "name at least one token"),
        ("token", {"token": "id:500"}, "ids are from 0 to 499"),
        ("token", {"token": 2.5}, "named by its text or its id"),
        ("token", {"token": 2, "rank": 4}, "only the top 3 tokens"),
        ("token", {"token": 2, "rank": 0}, "rank 0: give a number from 1"),
        ("token", {"token": 2, "rank": "all"}, "rank all: give a number from 1"),
        ("token", {"token": 2, "limit": -1}, "limit -1: give a number from 1"),
        ("token", {"token": 2, "layers": "5:5"}, "layers '5:5': chooses no layer of 4; write all, a list such as 0,5-10"),
        ("token", {"token": 2, "layers": 9}, "layers '9': the model has layers 0 to 3"),
        ("token", {"token": 2, "layers": "x"}, "layers 'x': 'x' is not a layer"),
        ("token", {"token": 2, "positions": "last:0"}, "positions 'last:0': write all"),
        ("token", {"token": 2, "tap": "nose"}, "unknown tap 'nose'"),
        ("layers", {"tap": "attn_out,mlp_out"}, "name one tap, or all"),
        *(
            (name, {"by": "kin"}, "by kin: no prompt of run 'demo' has it; their metadata has .*kind")
            for name in ("depth", "depths", "failures", "flips", "handoff", "layers", "outliers", "promoted")
        ),
    ],
)
def test_options_that_cannot_be(run: Run, name: str, options: dict[str, Any], problem: str) -> None:
    """What a query does not take, lacks or cannot read is refused by name."""
    with pytest.raises(UsageError, match=problem):
        query(run, name, **options)


@pytest.mark.parametrize("name", sorted(named_queries().keys() - {"attribution"}))
def test_columns_are_as_documented(run: Run, name: str) -> None:
    """Names and order; with a key to split by there is one more, before them."""
    options = {"token": "id:1"} if name in {"token", "trajectory"} else {}
    assert run.query(name, **options).to_arrow().schema.names == documented(name)
    assert run.query(name, **options, by="kind").to_arrow().schema.names == ["split", *documented(name)]


def test_a_key_where_there_is_none(tmp_path: Path) -> None:
    """Of a run without prompts it is not known that none has the key; a null is a value that a prompt has."""
    folder, _ = make_run(tmp_path)
    assert query(Store(tmp_path)["demo"], "failures", by="kind") == []
    commit_outcomes(folder, make_record(0))
    with pytest.raises(UsageError, match=r"by kind: .* has it; they have no metadata"):
        query(Store(tmp_path)["demo"], "layers", by="kind")
    commit_outcomes(folder, make_failure(1, metadata={"kind": None}))
    assert {row["split"] for row in query(Store(tmp_path)["demo"], "layers", by="kind")} == {None}


@pytest.mark.parametrize(
    ("changes", "name", "problem"),
    [
        ({"taps": ("attn_out", "mlp_out")}, "depth", "there is no resid_post"),
        ({"taps": ("attn_out", "mlp_out")}, "flips", "there is no resid_post"),
        ({"taps": ("resid_post",)}, "handoff", "tells attention from MLP by resid_mid"),
        ({"taps": ("resid_mid", "resid_post"), "layers": (0, 3)}, "handoff", "2 of 4 were lensed"),
    ],
)
def test_runs_that_lack_what_a_query_needs(tmp_path: Path, changes: dict[str, Any], name: str, problem: str) -> None:
    """The run is refused with what it lacks, not answered with an empty table."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0, **changes))
    with pytest.raises(UsageError, match=problem):
        query(Store(tmp_path)["demo"], name)


def test_a_run_without_the_last_layer(tmp_path: Path) -> None:
    """The certificate says how many layers the model has; what the last lensed one says is then not called final."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0, layers=(0, 2)))
    folder.certificate.write_text('{"layers": 4}')
    run = Store(tmp_path)["demo"]
    for name in ("depth", "depths", "flips"):
        with pytest.raises(UsageError, match="resid_post of the last layer, 3, was not lensed"):
            query(run, name)
    assert {row["agreement"] for row in query(run, "layers")} == {None}


def test_a_run_without_records(tmp_path: Path) -> None:
    """A run that has only failures, or nothing yet, says so."""
    folder, _ = make_run(tmp_path)
    run = Store(tmp_path)["demo"]
    assert query(run, "failures") == []
    commit_outcomes(folder, make_failure(0))
    with pytest.raises(UsageError, match="no records to query yet"):
        query(run, "layers")
    assert [row["kind"] for row in query(run, "failures")] == ["model"]


def test_a_run_whose_first_prompt_failed(tmp_path: Path) -> None:
    """What was lensed is told by the first record, and a failure is no place."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_failure(0), make_record(1), make_failure(2))
    rows = query(Store(tmp_path)["demo"], "layers", tap="resid_post")
    assert [(row["layer"], row["places"]) for row in rows] == [(0, 4), (3, 4)]
    assert {row["id"] for row in query(Store(tmp_path)["demo"], "depths")} == {"prompt-1"}


@pytest.mark.parametrize("name", named_queries())
def test_headers_say_what_statements_take(name: str) -> None:
    """Every option is known and used; a statement has no other parameter."""
    found = named_queries()[name]
    options = {option.name for option in found.options}
    assert options <= set(OPTIONS)
    assert set(found.needs) <= set(NEEDS)
    used = set(re.findall(r"\$(\w+)", found.sql))
    chosen = {*CHOOSING, "token"}
    assert options - chosen == used - chosen
    assert ("token" in options) == ("wanted" in found.sql)
    assert used <= set(OPTIONS)


def test_a_result_can_be_read_again(run: Run) -> None:
    """Rows, table and batches are the same, each time from the store."""
    result = run.query("layers")
    table = result.to_arrow()
    assert table.to_pylist() == result.rows() == list(result)
    assert sum(len(batch) for batch in result.batches()) == len(table)
    assert "split" not in table.column_names
