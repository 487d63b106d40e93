"""Pictures of whole runs: what is drawn is what the queries say, the same store gives the same bytes, errors name the option."""

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raylens.storage.charts.aggregate import aggregate
from raylens.storage.charts.compare import compared
from raylens.storage.comparison import compare
from raylens.storage.errors import UsageError
from raylens.storage.record import Record, TapLens
from raylens.storage.run import Run
from raylens.storage.store import open_store
from tests.builders import commit_outcomes, make_record, make_run
from tests.command import raylens_command
from tests.queried import write_run


def with_layers(record: Record, taps: dict[str, list[int]]) -> Record:
    """The record with some layers of each tap."""
    for name, layers in taps.items():
        tap = record.taps[name]
        rows = [tap.layers.index(layer) for layer in layers]
        record.taps[name] = TapLens(tuple(layers), tap.ids[rows], tap.logprobs[rows], tap.logsumexp[rows], tap.entropy[rows])
    return record


TAPS = ["attn_out", "resid_mid", "mlp_out", "resid_post"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Of the same prompts."""
    store = tmp_path_factory.mktemp("store")
    return write_run(store, name="one"), write_run(store, name="other", lens_seed=4)


def test_curves_are_the_queries(runs: tuple[Run, Run]) -> None:
    """Agreement, entropy, KL and depth by layer and tap; the bars of decision depth add up to the curve."""
    run = runs[0]
    picture = aggregate(run)
    assert list(picture.panels.names) == TAPS
    rows = {(row["tap"], row["layer"]): row for row in run.query("layers")}
    agreement, entropy, kl, depth = picture.panels.plots
    for name, plots in (("agreement", agreement), ("entropy_50", entropy), ("kl_50", kl)):
        for tap, curve in zip(TAPS, plots.curves, strict=True):
            assert curve.values.tolist() == [rows[tap, layer][name] for layer in picture.panels.layers]
    assert entropy.curves[-1].band is not None
    assert entropy.curves[-1].band[1].tolist() == [rows["resid_post", layer]["entropy_90"] for layer in picture.panels.layers]
    assert depth.bars is not None
    np.testing.assert_allclose(np.cumsum(depth.bars), depth.curves[0].values)
    assert depth.curves[0].values[-1] == 1


def test_maps_are_the_queries(runs: tuple[Run, Run]) -> None:
    """Means of agreement, entropy and KL, a row for each tap and a column for each layer, on the scales of grids."""
    picture = aggregate(runs[0])
    rows = {(row["tap"], row["layer"]): row for row in runs[0].query("layers")}
    maps = dict(zip(("agreement", "entropy", "kl"), picture.panels.maps, strict=True))
    for name, one in maps.items():
        assert one.values.tolist() == [[rows[tap, layer][name] for layer in picture.panels.layers] for tap in TAPS]
    assert [(one.scale.low, one.scale.high) for one in maps.values()] == [(0, 1), (0, 12), (0.1, 100)]
    assert aggregate(runs[0], by="kind").panels.maps[0].values.shape == (3, 4)


def test_values_of_a_key_are_drawn_apart(runs: tuple[Run, Run]) -> None:
    """One curve a value, of resid_post, that says of how many places it is; prompts without the key count as (none)."""
    picture = aggregate(runs[0], by="kind")
    places: Counter[str] = Counter()
    for record in runs[0].records():
        places[record.metadata.get("kind") or "(none)"] += len(record.positions)
    assert len(places) == 3
    assert list(picture.panels.names) == [f"{value}, n={count}" for value, count in sorted(places.items())]
    assert all(one.names == picture.panels.names for one in picture.panels.maps)
    assert f"{places.total()} places per layer; by kind, tap resid_post; n: places of each value" in picture.captions[0]
    one, other = (aggregate(runs[0], by="kind", positions=positions).panels.names for positions in (None, "last"))
    assert [name.split(",")[0] for name in one] == [name.split(",")[0] for name in other]
    assert one != other


def test_a_value_called_none_is_one_of_its_own(tmp_path: Path) -> None:
    """Beside prompts that lack the key, which are called so in the picture."""
    folder, _ = make_run(tmp_path)
    for index, metadata in enumerate(({"t": "(none)"}, {}, {"t": "a"}, {"t": "a"})):
        commit_outcomes(folder, make_record(index, metadata=metadata))
    (run,) = open_store(tmp_path)
    picture = aggregate(run, by="t")
    assert list(picture.panels.names) == ["(none), n=4", "(none), n=4", "a, n=8"]
    assert "16 places per layer" in picture.captions[0]
    rows = {(row["split"], row["layer"]): row["entropy_50"] for row in run.query("layers", by="t", tap="resid_post")}
    for split, curve in zip((None, "(none)", "a"), picture.panels.plots[1].curves, strict=True):
        assert curve.values.tolist() == [rows[split, layer] for layer in picture.panels.layers]


def test_a_value_named_as_a_tap_is_drawn_as_any_other(tmp_path: Path) -> None:
    """The band is of a tap's curve."""
    folder, _ = make_run(tmp_path)
    for index, value in enumerate(("resid_post", "other")):
        commit_outcomes(folder, make_record(index, metadata={"by": value}))
    (run,) = open_store(tmp_path)
    for plot in aggregate(run, by="by").panels.plots:
        assert all(curve.band is None for curve in plot.curves)


def test_long_values_are_cut_where_they_still_differ(tmp_path: Path) -> None:
    """At their beginning where that is the same: two curves of one name could not be told apart."""
    folder, _ = make_run(tmp_path)
    for index, value in enumerate(("customer_support_email", "customer_support_phone")):
        commit_outcomes(folder, make_record(index, metadata={"by": value}))
    (run,) = open_store(tmp_path)
    assert list(aggregate(run, by="by").panels.names) == ["…r_support_email, n=4", "…r_support_phone, n=4"]


def test_differences_are_the_comparisons(runs: tuple[Run, Run]) -> None:
    """Signed, and around 0."""
    picture = compared(*runs)
    rows = {(row["tap"], row["layer"]): row for row in compare(*runs)}
    change = picture.panels.plots[2]
    for tap, curve in zip(TAPS, change.curves, strict=True):
        assert curve.values.tolist() == [rows[tap, layer]["entropy_change"] for layer in picture.panels.layers]
    assert change.axis.low == -change.axis.high


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_store_gives_the_same_bytes(runs: tuple[Run, Run], tmp_path: Path, suffix: str) -> None:
    """Of both kinds, in every format."""
    for other in (None, runs[1]):
        files = [runs[0].plot(output=tmp_path / f"{n}.{suffix}", against=other).paths[0] for n in range(2)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_bare_run_has_what_it_can(tmp_path: Path) -> None:
    """Without the last layers there is no agreement or depth, without statistics no KL: entropy alone is drawn."""
    run = write_run(tmp_path, stats=False, taps=("attn_out", "mlp_out"))
    picture = aggregate(run)
    assert [plot.axis.label for plot in picture.panels.plots] == ["median entropy in nats"]
    assert [one.scale.label for one in picture.panels.maps] == ["mean entropy in nats, scale ends at 12"]
    assert len(picture.captions) == 1  # of no band, which is of the residual's curve alone
    Image.open(BytesIO(run.plot().pages[0])).verify()


def test_runs_of_one_layer(tmp_path: Path) -> None:
    """All that there is, is drawn."""
    one, other = (write_run(tmp_path, name=name, layers=1) for name in ("one", "other"))
    assert list(aggregate(one).panels.names) == ["resid_pre", *TAPS]
    for picture in (one.plot(), one.plot(against=other)):
        Image.open(BytesIO(picture.pages[0])).verify()


def test_one_layer_of_each_tap_beside_more_layers_of_others(tmp_path: Path) -> None:
    """As of heads, or of the embedding: the taps that there are, or a word that there are none."""
    folder, _ = make_run(tmp_path, 2, name="heads")
    taps = {"resid_post": [3], "head_0": [1, 2, 3]}
    records = [make_record(index, taps=tuple(taps), layers=(1, 2, 3), vocabulary_size=12) for index in range(2)]
    commit_outcomes(folder, *(with_layers(record, taps) for record in records))
    run = Run(folder)
    assert list(aggregate(run).panels.names) == ["resid_post"]
    assert aggregate(run).panels.layers == [3]
    assert list(compared(run, run).panels.names) == ["resid_post"]
    heads = write_run(tmp_path, name="alone", taps=("head_0",), stats=False)
    for draw in (lambda: aggregate(heads), lambda: compared(heads, heads)):
        with pytest.raises(UsageError, match="only attention heads"):
            draw()


def test_positions_are_chosen(runs: tuple[Run, Run]) -> None:
    """The curves and the layers of decision are of those places, which the caption tells."""
    picture = aggregate(runs[0], positions="last:2")
    rows = {(row["tap"], row["layer"]): row for row in runs[0].query("layers", positions="last:2").rows()}
    wanted = [[rows[tap, layer]["entropy"] for layer in picture.panels.layers] for tap in TAPS]
    assert picture.panels.maps[1].values.tolist() == wanted
    depth = runs[0].query("depth", positions="last:2").rows()
    assert picture.panels.plots[-1].curves[0].values.tolist() == [row["stable_share"] for row in depth]
    assert "14 places per layer; positions last:2" in picture.captions[0]
    with pytest.raises(UsageError, match="--positions 50:: none of them was lensed in run 'one'"):
        aggregate(runs[0], positions="50:")


def test_a_key_of_a_run_without_the_last_tap(tmp_path: Path) -> None:
    """What is drawn apart is of the last tap there is."""
    run = write_run(tmp_path, stats=False, taps=("attn_out", "mlp_out"))
    assert "by kind, tap mlp_out" in aggregate(run, by="kind").captions[0]


def plot(run: Run, *arguments: str) -> "tuple[int, str]":
    """Exit code and what was said of ``raylens plot``."""
    done = raylens_command("plot", *arguments, "--store", str(run.folder.root.parents[1]))
    return done.returncode, done.stdout + done.stderr


def test_by_the_command(runs: tuple[Run, Run], tmp_path: Path) -> None:
    """Both kinds, and every record of a run into a folder, each by its index."""
    assert plot(runs[0], "one", "--kind", "aggregate", "--by", "kind", "-o", str(tmp_path / "a.png"))[0] == 0
    assert plot(runs[0], "one", "--kind", "compare", "--against", "other", "-o", str(tmp_path / "c.svg"))[0] == 0
    code, said = plot(runs[0], "one", "--all", "--kind", "trajectory", "--format", "svg", "-o", str(tmp_path / "all"))
    assert (code, said) == (0, f"7 pictures: {tmp_path / 'all'}\n")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"{index}.svg" for index in range(7)]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("one/x", "--kind", "aggregate"), "give the run alone"),
        (("one", "--kind", "compare"), "--against RUN"),
        (("one", "--kind", "aggregate", "--against", "other"), "--against RUN"),
        (("one", "--kind", "aggregate", "--tap", "mlp_out"), "--tap"),
        (("one", "--kind", "compare", "--against", "other", "--by", "kind"), "--by"),
        (("one", "--kind", "compare", "--against", "other", "--positions", "last"), "--positions"),
        (("one", "--all", "--by", "kind"), "--by"),
        (("one/x", "--all"), "give the run alone"),
    ],
)
def test_what_does_not_go_together(runs: tuple[Run, Run], tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    """Exit code 2, and the option by its name."""
    code, said = plot(runs[0], *arguments, "-o", str(tmp_path / "x.png"))
    assert code == 2
    assert part in said
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_a_run_of_heads(tmp_path: Path) -> None:
    """Has no curves, as without a key."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, *(make_record(index, taps=("head_0",), metadata={"kind": "a"}) for index in range(3)))
    with pytest.raises(UsageError, match="only attention heads were lensed"):
        aggregate(open_store(tmp_path)["demo"], by="kind")


def test_too_many_values(runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with more values than can be told apart is refused by name."""
    monkeypatch.setattr("raylens.storage.charts.MOST_VALUES", 2)
    with pytest.raises(UsageError, match="--by kind: 3 values"):
        aggregate(runs[0], by="kind")
    with pytest.raises(UsageError, match=r"--by kin: no prompt of run 'one' has it; their metadata has .*kind"):
        aggregate(runs[0], by="kin")
