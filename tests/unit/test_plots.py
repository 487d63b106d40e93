"""Pictures: what they show, and that the files are sound, alike each time, and safe with any token."""

import hashlib
import logging
import re
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from PIL import Image

from raylens.storage.errors import UsageError
from raylens.storage.fonts import choose_fonts
from raylens.storage.plots import FORMATS, KINDS, attribution, canvas, files, grid, rank, trajectory, write
from raylens.storage.plots.request import Request, coverage, spans
from raylens.storage.record import Record, TapLens
from raylens.storage.taps import DEFAULT_TAPS
from tests.pictured import ENGLISH, HOSTILE, MODEL, fixed, make, render


def drawn(kind: str, record: Record, vocabulary: list[bytes | None], request: Request = MODEL) -> Figure:
    fonts = choose_fonts()
    module = {"attribution": attribution, "grid": grid, "rank": rank, "trajectory": trajectory}[kind]
    with canvas.settled(fonts):
        figure = files.written(module.draw(module.pages(record, vocabulary, request)[0], fonts))
        figure.canvas.draw()
    return figure


def test_kinds_and_their_stats() -> None:
    assert KINDS == ("attribution", "grid", "rank", "trajectory")
    assert attribution.STATS == ("best", "next")
    assert grid.STATS == ("rank", "prob", "logprob", "entropy", "kl", "final_prob", "final_logprob")
    assert rank.STATS == ("prob",)
    assert trajectory.STATS == ("prob", "logprob", "rank")


# --- what a grid shows


def test_grid_shows_top_tokens_with_layer_0_first() -> None:
    picture = grid.grid(*fixed(), MODEL)
    assert picture.rows == ("layer 0", "layer 1")
    assert picture.texts == (("·a", "·c", "·d"), ("·b", "·c", "·a"))
    assert picture.inputs == ("·a", "·b", "·c")
    assert picture.nexts == ("·b", "·c", "")
    assert picture.hits == (True, True, False)
    assert not picture.has_embedding
    assert "model" in picture.heading
    assert "layer 1 (resid_post)" in picture.captions[0]


def test_grid_values_by_stat() -> None:
    record, vocabulary = fixed()
    by_rank = grid.grid(record, vocabulary, MODEL)
    assert by_rank.values.tolist() == [[2, 1, 3], [1, 1, 1]]
    assert (by_rank.scale.low, by_rank.scale.high, by_rank.scale.log) == (1, 3, True)
    by_prob = grid.grid(record, vocabulary, Request("m", stat="prob"))
    np.testing.assert_allclose(by_prob.values, [[0.5, 0.4, 0.9], [0.75, 0.6, 0.3]], rtol=1e-6)
    assert (by_prob.scale.low, by_prob.scale.high) == (0, 1)
    by_entropy = grid.grid(record, vocabulary, Request("m", stat="entropy"))
    assert by_entropy.values.tolist() == [[1, 2, 3], [0.5, 0.25, 0.125]]
    assert (by_entropy.scale.low, by_entropy.scale.high) == (0, 12)


def test_grid_puts_the_embedding_below_layer_0() -> None:
    record, vocabulary = make(ENGLISH, ("resid_pre", *DEFAULT_TAPS), layers=3)
    picture = grid.grid(record, vocabulary, MODEL)
    assert picture.rows == ("emb", "layer 0", "layer 1", "layer 2")
    assert picture.has_embedding
    token = vocabulary[record.taps["resid_pre"].ids[0, 3, 0]]
    assert picture.texts[0][3] == ("‹id 17›" if token is None else token.decode().replace(" ", "·").replace("\n", "↵"))
    alone = grid.grid(record, vocabulary, Request("m", tap="resid_pre"))
    assert alone.rows == ("emb",)
    assert alone.texts[0] == picture.texts[0]


def test_grid_of_a_long_prompt_shows_its_end_and_says_so() -> None:
    record, vocabulary = make(ENGLISH * 4)
    picture = grid.grid(record, vocabulary, MODEL)
    assert picture.positions == tuple(range(24, 48))
    assert picture.captions[1] == "positions 24 to 47 of 0 to 47; 24 of 48 lensed positions not shown"
    chosen = grid.grid(record, vocabulary, Request("m", positions=[7, 3, 7, 4]))
    assert chosen.positions == (3, 4, 7)
    assert chosen.inputs == ("·France", "·is", "·and")
    assert chosen.nexts == ("·is", "·Paris", "·it")


def test_grid_of_some_lensed_positions_knows_their_neighbours() -> None:
    record, vocabulary = fixed()
    lens = record.taps["resid_post"]
    some = TapLens(lens.layers, lens.ids[:, 1:2], lens.logprobs[:, 1:2], lens.logsumexp[:, 1:2], lens.entropy[:, 1:2])
    part = Record("r", 0, "", [0, 1, 2], [], [1], [0, 1], {"resid_post": some}, truncated_from=90)
    picture = grid.grid(part, vocabulary, MODEL)
    assert (picture.inputs, picture.nexts, picture.hits) == (("·b",), ("·c",), (True,))
    assert picture.captions[1] == "position 1 of 0 to 2; lensed: 1; prompt cut from 90 to 3 tokens before the model read it"


def test_grid_without_resid_post_measures_against_the_last_tap_there_is() -> None:
    record, vocabulary = make(ENGLISH, ("attn_out",), layers=3)
    picture = grid.grid(record, vocabulary, MODEL)
    assert (picture.values[-1] == 1).all()
    assert "attn_out" in picture.captions[0]


def test_grid_takes_the_tap_asked_for_by_either_name() -> None:
    record, vocabulary = make(ENGLISH)
    own, theirs = (grid.grid(record, vocabulary, Request("m", tap=tap)) for tap in ("mlp_out", "mlp_output"))
    assert own.texts == theirs.texts != grid.grid(record, vocabulary, MODEL).texts
    assert "of mlp_out;" in own.captions[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_title_does_not_displace_the_name_of_the_model(kind: str) -> None:
    record, vocabulary = make(ENGLISH, name="p\n1")
    shown = {
        text.get_text().strip("\u200e")
        for text in drawn(kind, record, vocabulary, Request("org/m", title="My\ttitle")).axes[0].texts
    }
    assert {"My⇥title", "org/m · prompt p↵1"} <= shown
    assert "org/m · prompt p↵1" in {
        text.get_text().strip("\u200e") for text in drawn(kind, record, vocabulary, Request("org/m")).axes[0].texts
    }


# --- what a trajectory shows


def test_trajectories_of_the_best_tokens() -> None:
    """By default those the last layer puts first; where a token is not among the k best there is no value."""
    record, vocabulary = fixed()
    picture = trajectory.trajectories(record, vocabulary, MODEL)
    assert picture.names == ("·a", "·d")
    assert picture.layers == (0, 1)
    np.testing.assert_allclose(picture.values, [[np.nan, 0.3], [0.9, 0.3]], rtol=1e-6)
    assert "; gaps in a line: its token is not in the top 2 there" in picture.captions[1]


def test_trajectories_by_stat() -> None:
    record, vocabulary = fixed()
    ranks = trajectory.trajectories(record, vocabulary, Request("m", "rank", positions=[0], tokens=[1, 0]))
    np.testing.assert_array_equal(ranks.values, [[2, 1], [1, 2]])
    assert [text for _, text in ranks.axis.ticks] == ["1", "2", "5", "10"]
    assert ranks.axis.place(np.array([1.0, 10.0])).tolist() == [1.0, 0.0]
    logprobs = trajectory.trajectories(record, vocabulary, Request("m", "logprob", positions=[0], tokens=[1]))
    np.testing.assert_allclose(logprobs.values, np.log([[0.25, 0.75]]), rtol=1e-6)
    assert logprobs.axis.low <= -1.39


def test_tracked_tokens_have_exact_values_everywhere() -> None:
    record, vocabulary = fixed()
    stats_ = {
        "tracked_logprob": np.full((2, 3, 1), -7.5, np.float32),
        "tracked_rank": np.full((2, 3, 1), 4, np.uint32),
    }
    lens = replace(record.taps["resid_post"], stats=stats_)
    record = replace(record, taps={"resid_post": lens}, tracked=[3])
    picture = trajectory.trajectories(record, vocabulary, Request("m", "rank", positions=[0], tokens=[3]))
    np.testing.assert_array_equal(picture.values, [[4, 4]])
    assert "gaps" not in picture.captions[1]


# --- every so many layers


def test_layer_steps_keep_the_last_layer() -> None:
    record, vocabulary = make(ENGLISH, layers=6)
    step = Request("m", layer_step=4)
    assert grid.grid(record, vocabulary, step).rows == ("layer 1", "layer 5")
    assert {layer for layer, _ in rank.rank(record, vocabulary, step).rows} == {1, 5}
    assert trajectory.trajectories(record, vocabulary, step).layers == (1, 5)


def test_grid_of_logprob_and_kl() -> None:
    record, vocabulary = fixed()
    np.testing.assert_allclose(
        grid.grid(record, vocabulary, Request("m", "logprob")).values[0], np.log([0.5, 0.4, 0.9]), rtol=1e-6
    )
    kl = np.array([[1, 2, 3], [0, 0, 0]], np.float32)
    record = with_kl(record, kl)
    np.testing.assert_array_equal(grid.grid(record, vocabulary, Request("m", "kl")).values, kl)
    both = replace(record, taps={"resid_pre": replace(record.taps["resid_post"], stats={}), **record.taps})
    assert not grid.grid(both, vocabulary, Request("m", "kl")).has_embedding  # it has no kl to show
    assert grid.grid(both, vocabulary, Request("m", "entropy")).has_embedding


def with_kl(record: Record, kl: np.ndarray) -> Record:
    """The record with that KL, [L, P]."""
    return replace(record, taps={"resid_post": replace(record.taps["resid_post"], stats={"kl": kl})})


def test_kl_of_early_layers_is_told_apart() -> None:
    """It is tens of nats there and hundredths in the last ones; 0 and what rounding makes of it look alike."""
    record, vocabulary = fixed()
    kl = np.array([[60, 30, 15], [5, 0, -1e-7]], np.float32)
    picture = grid.grid(with_kl(record, kl), vocabulary, Request("m", "kl"))
    colours = picture.scale.paint(picture.values)[..., :3].reshape(6, 3)
    assert np.abs(np.diff(colours[:5], axis=0)).max(axis=1).min() > 0.05
    np.testing.assert_array_equal(colours[4], colours[5])


# --- what a rank picture shows


def test_rank_picture_of_the_last_position() -> None:
    picture = rank.rank(*fixed(), MODEL)
    assert picture.rows == ((0, "resid_post"), (1, "resid_post"))
    assert picture.texts == (("·d", "·b"), ("·a", "·d"))
    np.testing.assert_allclose(picture.values, [[0.9, 0.1], [0.3, 0.3]], rtol=1e-6)
    assert picture.found.tolist() == [[False, False], [True, False]]
    assert picture.captions[0] == "prompt:  a b c"
    assert picture.captions[1] == "predicted next: ·a (probability 0.3, layer 1, resid_post)"


def test_rank_picture_of_another_position() -> None:
    record, vocabulary = fixed()
    picture = rank.rank(record, vocabulary, Request("m", positions=[0]))
    assert picture.texts == (("·a", "·b"), ("·b", "·a"))
    assert picture.captions[:2] == (
        "prompt:  a",
        "predicted next: ·b (probability 0.75, layer 1, resid_post); actual next: ·b",
    )


def test_a_small_probability_is_told_to_its_digits() -> None:
    record, vocabulary = fixed()
    record.taps["resid_post"].logprobs[-1, 2] = np.log(1.234e-4)
    assert "(probability 0.000123, layer 1" in rank.rank(record, vocabulary, MODEL).captions[1]


def test_rank_picture_goes_up_through_layers_and_blocks() -> None:
    record, vocabulary = make(ENGLISH, ("resid_pre", *DEFAULT_TAPS), layers=2)
    picture = rank.rank(record, vocabulary, MODEL)
    assert picture.rows == ((0, "resid_pre"), *((0, tap) for tap in DEFAULT_TAPS), *((1, tap) for tap in DEFAULT_TAPS))
    assert picture.breaks == (5,)
    only = rank.rank(record, vocabulary, Request("m", tap="attn_out"))
    assert only.rows == ((0, "attn_out"), (1, "attn_out"))


def test_rank_picture_with_taps_of_unequal_k() -> None:
    record, vocabulary = make(ENGLISH, ("mlp_out", "resid_post"), layers=1, k=4)
    short = record.taps["mlp_out"]
    record.taps["mlp_out"] = TapLens(short.layers, short.ids[:, :, :2], short.logprobs[:, :, :2], short.logsumexp, short.entropy)
    picture = rank.rank(record, vocabulary, MODEL)
    assert picture.texts[0][2:] == ("", "")
    assert np.isnan(picture.values).tolist() == [[False, False, True, True], [False] * 4]
    assert not picture.found[0, 2:].any()


def test_rank_picture_shows_the_first_ranks_of_many() -> None:
    record, vocabulary = make([f" {i}".encode() for i in range(60)], ("resid_post",), layers=1, k=50)
    picture = rank.rank(record, vocabulary, MODEL)
    assert picture.values.shape == (1, 20)
    assert "columns: rank 1 to 20 of 50;" in picture.captions[3]


def test_rank_picture_of_a_long_prompt_quotes_its_end() -> None:
    record, vocabulary = make([b" start", *[b" x"] * 400, b" end"], ("resid_post",), layers=1)
    quoted = rank.rank(record, vocabulary, MODEL).captions[0]
    assert quoted.startswith("prompt: …")
    assert quoted.endswith(" x x end")
    assert len(quoted) < 260


def test_lines_of_a_rank_picture_lie_between_cells() -> None:
    record, vocabulary = make(ENGLISH, layers=6)
    figure = drawn("rank", record, vocabulary)
    axes = figure.axes[0]
    mesh = max((c for c in axes.collections if isinstance(c, QuadMesh)), key=lambda c: c.get_coordinates().shape[0])
    edges = mesh.get_coordinates()[:, 0, 1]
    lines = [s for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments() if np.ptp(s[:, 0]) > 1]
    np.testing.assert_allclose([line[:, 1] for line in lines], np.repeat(edges[[4, 8, 12, 16, 20], None], 2, axis=1), atol=1e-9)


# --- refusals


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        ("grid", Request("m", tap="resid_post"), "tap 'resid_post' is not in prompt 'p'; it has attn_out, mlp_out"),
        ("rank", Request("m", tap="nonsense"), "tap 'nonsense' is not in prompt 'p'; it has attn_out, mlp_out"),
        ("grid", Request("m", positions=[0, 12]), "position 12 is not in prompt 'p'; it has 0 to 11"),
        ("rank", Request("m", positions=[-1]), "position -1 is not in prompt 'p'; it has 0 to 11"),
        ("grid", Request("m", positions=[]), "no position chosen; it has 0 to 11"),
        (
            "rank",
            Request("m", positions=[1, 2]),
            "the rank picture shows one position; 2 were chosen; --pages draws a page of each",
        ),
        (
            "grid",
            Request("m", stat="colour"),
            "stat 'colour': this picture can be coloured by rank, prob, logprob, entropy, kl, final_prob, final_logprob",
        ),
        ("grid", Request("m", stat="kl"), "stat 'kl': prompt 'p' has no kl; run it with --stats kl"),
        (
            "trajectory",
            Request("m", positions=[1, 2]),
            "the trajectory picture shows one position; 2 were chosen; --pages draws a page of each",
        ),
        ("trajectory", Request("m", tokens=range(9)), "9 tokens chosen: a trajectory picture shows 1 to 8"),
        ("rank", Request("m", stat="rank"), "stat 'rank': this picture can be coloured by prob"),
        ("pie", Request("m"), "picture kind 'pie': choose from attribution, grid, rank, trajectory"),
        ("canvas", Request("m"), "picture kind 'canvas': choose from attribution, grid, rank, trajectory"),
    ],
)
def test_what_cannot_be_drawn_is_refused(kind: str, request_: Request, message: str) -> None:
    record, vocabulary = make(ENGLISH, ("attn_out", "mlp_out"))
    with pytest.raises(UsageError) as refusal:
        render(record, kind, "png", request_, vocabulary=vocabulary)
    assert str(refusal.value) == message


def test_empty_records_are_refused() -> None:
    record, vocabulary = make(ENGLISH)
    bare = Record("p", 0, "", [0], [], [0], [], {})
    unlensed = Record("p", 0, "", record.token_ids, [], [], [0], record.taps)
    for kind in KINDS:
        with pytest.raises(UsageError, match="no tap to draw"):
            render(bare, kind, "png", MODEL, vocabulary=vocabulary)
        with pytest.raises(UsageError, match="no lensed position"):
            render(unlensed, kind, "png", MODEL, vocabulary=vocabulary)


def test_a_picture_too_large_is_refused() -> None:
    record, vocabulary = make([b" x"] * 400, ("resid_post",), layers=1)
    with pytest.raises(UsageError, match="pixels is too large"):
        render(record, "grid", "png", Request("m", positions=range(400)), vocabulary=vocabulary)


@pytest.mark.parametrize("name", ["x.jpg", "x", "png", ".png", "x.svg.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    record, vocabulary = make(ENGLISH)
    with pytest.raises(UsageError, match=r"must end in \.png, \.svg or \.pdf"):
        write(record, "grid", tmp_path / name, Request("m"), vocabulary=vocabulary)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    record, vocabulary = make(ENGLISH[:1], ("resid_post",), layers=1)
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        write(record, "grid", tmp_path / "none" / "x.png", Request("m"), vocabulary=vocabulary)


def test_a_file_that_is_no_font_is_refused(tmp_path: Path) -> None:
    record, vocabulary = make(ENGLISH[:1], ("resid_post",), layers=1)
    wrong = tmp_path / "wrong.ttf"
    wrong.write_text("no font")
    for path in (wrong, tmp_path / "none.ttf"):
        with pytest.raises(UsageError, match="cannot be used"):
            render(record, "grid", "png", MODEL, vocabulary=vocabulary, font=path)


# --- files


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_files_by_suffix(tmp_path: Path) -> None:
    record, vocabulary = make(ENGLISH, name="<b>&")
    for kind in KINDS:
        made = {s: write(record, kind, tmp_path / f"{kind}.{s}", Request("m"), vocabulary=vocabulary)[0] for s in FORMATS}
        with Image.open(made["png"]) as image:
            image.load()
            assert image.size == png_size(made["png"].read_bytes())
        svg = made["svg"].read_text("utf-8")
        texts = ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        assert any(text.endswith("m · prompt <b>&") for text in texts)
        assert "prompt &lt;b&gt;&amp;" in svg
        pdf = made["pdf"].read_bytes()
        assert pdf.startswith(b"%PDF-1.")
        assert pdf.rstrip().endswith(b"%%EOF")
        assert b"CreationDate" not in pdf
    (upper,) = write(record, "grid", tmp_path / "UPPER.PNG", Request("m"), vocabulary=vocabulary)
    assert upper.read_bytes()[1:4] == b"PNG"


def test_cells_have_one_size_whatever_their_number() -> None:
    record, vocabulary = make(ENGLISH * 2)
    sizes = [
        png_size(render(record, "grid", "png", Request("m", positions=range(n)), vocabulary=vocabulary)) for n in (12, 18, 24)
    ]
    for one, wider in pairwise(sizes):
        assert wider[0] - one[0] == pytest.approx(6 * 0.84 * 150, abs=2)  # pixels; how they are rounded is matplotlib's
    assert sizes[0][1] == sizes[1][1] == sizes[2][1]
    heights = [png_size(render(*[(r := make(ENGLISH, layers=n))[0], "rank", "png", MODEL], vocabulary=r[1]))[1] for n in (1, 31)]
    assert heights[1] - heights[0] == round(30 * 4 * 0.2 * 150)


def test_colours_mean_the_same_in_every_picture() -> None:
    scale = grid.grid(*fixed(), Request("m", stat="prob")).scale
    other = grid.grid(*make(ENGLISH), Request("m", stat="prob")).scale
    assert scale == other
    rgba = scale.paint(np.array([0.0, 0.5, 1.0, 7.0, np.nan]))
    viridis = matplotlib.colormaps["viridis"]
    np.testing.assert_allclose(rgba[:4], viridis([0.0, 0.5, 1.0, 1.0]))
    assert len(set(rgba[4, :3])) == 1


def test_a_cell_is_painted_in_its_colour_and_its_text_stands_out() -> None:
    record, vocabulary = fixed()
    figure = drawn("grid", record, vocabulary, Request("m", stat="prob"))
    axes = figure.axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh) and c.get_coordinates().shape[:2] == (3, 4))
    left, bottom = mesh.get_coordinates()[1, 2]
    pixels = np.asarray(figure.canvas.buffer_rgba())
    x, y = int((left + 0.05) * 150), pixels.shape[0] - int((bottom + 0.05) * 150)
    np.testing.assert_allclose(pixels[y, x, :3] / 255, matplotlib.colormaps["viridis"](0.3)[:3], atol=0.01)
    inks = {text.get_text(): text.get_color() for text in axes.texts if text.get_position()[1] > bottom - 0.24}
    assert canvas.ink(np.array([1.0, 1, 1, 1])) == "black"
    assert canvas.ink(np.array([0.0, 0, 0, 1])) == "white"
    assert canvas.ink(np.array(matplotlib.colormaps["viridis"](0.3))) == inks["·a"] == "white"


def test_a_frame_leaves_a_low_stroke_apart() -> None:
    """Of a predicted underscore: between it and the frame the cell's own colour is seen."""
    record, vocabulary = fixed()
    record.taps["resid_post"].logprobs[1, 2, 0] = np.log(0.95)
    figure = drawn("rank", record, [b"_", *vocabulary[1:]])
    (mesh,) = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh) and c.get_coordinates().shape[:2] == (3, 3)]
    (left, bottom), (right, top) = mesh.get_coordinates()[1, 0], mesh.get_coordinates()[2, 1]
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, int((left + right) / 2 * 150), :3]
    cell = pixels[round(bottom * 150) : round(top * 150)].astype(int)
    dark, fill = cell.max(axis=1) < 128, np.abs(cell - matplotlib.colormaps["viridis"](0.95, bytes=True)[:3]).max(axis=1) < 16
    looks = ["dark" if one else "fill" for one, other in zip(dark, fill, strict=True) if one or other]
    assert [look for look, before in zip(looks, ["", *looks], strict=False) if look != before] == [
        *("dark", "fill", "dark", "fill", "dark"),
    ]


def test_values_that_are_no_numbers_are_drawn_grey() -> None:
    record, vocabulary = fixed()
    lens = record.taps["resid_post"]
    lens.logprobs[0, 0] = np.nan
    lens.logprobs[0, 1] = -np.inf
    for kind in ("grid", "rank", "trajectory"):
        assert png_size(render(record, kind, "png", Request("m", stat="prob", positions=[0]), vocabulary=vocabulary))
    picture = grid.grid(record, vocabulary, Request("m", stat="prob"))
    assert picture.values[0, 1] == 0
    painted = picture.scale.paint(picture.values)
    assert len(set(painted[0, 0, :3])) == 1
    assert len(set(painted[0, 1, :3])) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_record_gives_the_same_bytes(kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record, vocabulary = make(HOSTILE)
    first = render(record, kind, suffix, MODEL, vocabulary=vocabulary)
    assert render(record, kind, suffix, MODEL, vocabulary=vocabulary) == first
    for name, value in {
        "svg.fonttype": "path",
        "savefig.bbox": "tight",
        "figure.dpi": 30,
        "font.size": 30,
        "text.usetex": True,
    }.items():
        monkeypatch.setitem(matplotlib.rcParams, name, value)
    assert render(record, kind, suffix, MODEL, vocabulary=vocabulary) == first
    assert matplotlib.rcParams["savefig.bbox"] == "tight"
    other = make(HOSTILE, seed=1)
    assert render(other[0], kind, suffix, MODEL, vocabulary=other[1]) != first


def test_pictures_drawn_in_threads_are_the_same() -> None:
    record, vocabulary = make(ENGLISH[:4], layers=2)
    jobs = [(kind, suffix) for kind in KINDS for suffix in FORMATS] * 2
    alone = [render(record, kind, suffix, MODEL, vocabulary=vocabulary) for kind, suffix in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: render(record, *job, MODEL, vocabulary=vocabulary), jobs))
    assert together == alone


def test_another_process_gives_the_same_bytes_without_pyplot_or_torch() -> None:
    code = """
import hashlib, sys
import raylens.storage.plots as plots
assert plots.KINDS and "matplotlib" not in sys.modules and "numpy" not in sys.modules
sys.path.insert(0, sys.argv[1])
import tests.pictured as t
record, vocabulary = t.make(t.HOSTILE)
for suffix in plots.FORMATS:
    print(hashlib.sha256(t.render(record, "grid", suffix, t.MODEL, vocabulary=vocabulary)).hexdigest())
assert not {"matplotlib.pyplot", "torch", "ray", "transformers"} & set(sys.modules)
"""
    record, vocabulary = make(HOSTILE)
    here = [hashlib.sha256(render(record, "grid", s, MODEL, vocabulary=vocabulary)).hexdigest() for s in FORMATS]
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2])]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONHASHSEED": "7", "HOME": str(Path.home())}, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == here


# --- any token


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_hostile_tokens(kind: str, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    record, vocabulary = make(
        HOSTILE, ("resid_pre", *DEFAULT_TAPS), k=20, name="".join(t.decode("utf-8", "replace") for t in HOSTILE)
    )
    request = Request("$$ <m> \x00\u202e", positions=range(len(HOSTILE)) if kind == "grid" else None)
    with caplog.at_level(logging.INFO):
        data = render(record, kind, suffix, request, vocabulary=vocabulary)
    assert [entry for entry in caplog.records if entry.name.startswith("matplotlib")] == []
    if suffix == "svg":
        root = ElementTree.fromstring(data)
        texts = {"".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"$$", "]]>", "‹FF›"} <= texts or kind in ("attribution", "trajectory")  # which show none, and five
        assert {e.tag.rpartition("}")[2] for e in root.iter()}.isdisjoint({"script", "b", "m"})
        assert not [c for c in data.decode() if c in "\x00\x1b\u202e\u2028"]


@given(st.lists(st.binary(max_size=12) | st.text(max_size=6).map(lambda t: t.encode()), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_tokens_can_be_drawn(tokens: list[bytes]) -> None:
    record, vocabulary = make(tokens, ("resid_post",), layers=2, k=2)
    for kind in KINDS:
        ElementTree.fromstring(render(record, kind, "svg", MODEL, vocabulary=vocabulary))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [ENGLISH, ENGLISH[:1], HOSTILE], ids=["english", "one", "hostile"])
def test_no_text_leaves_the_picture_or_touches_another(kind: str, tokens: list[bytes]) -> None:
    record, vocabulary = make(tokens, layers=3, k=10, name="a name that is rather long " * 9)
    figure = drawn(kind, record, vocabulary, Request("model", positions=range(len(tokens)) if kind == "grid" else None))
    boxes = np.array([t.get_window_extent().extents for t in figure.axes[0].texts if t.get_text()])
    width, height = figure.bbox.width, figure.bbox.height
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    touching = (high - low > 0.5).all(axis=2)
    assert np.argwhere(np.triu(touching, 1)).tolist() == []


# --- fonts


@pytest.fixture(scope="module")
def box_font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A font that draws one Chinese character, as a box one em wide."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord("東"): "box"})
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in [(100, 800), (900, 800), (900, 0)]:
        pen.lineTo(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "box": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Raylens Box", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    path = tmp_path_factory.mktemp("font") / "box.ttf"
    builder.save(path)
    return path


def test_a_font_file_draws_what_dejavu_lacks(box_font: Path) -> None:
    plain, extended = choose_fonts(), choose_fonts(box_font)
    assert plain.families[0] == extended.families[0] == "DejaVu Sans"
    assert extended.families[1] == "Raylens Box"
    assert extended.drawable("a東🎉") == "a東‹1F389›"
    assert extended.width("東", 72) == pytest.approx(1.0)
    record, vocabulary = make(["東".encode()], ("resid_post",), layers=1)
    for kind in KINDS:
        for suffix in FORMATS:
            assert render(record, kind, suffix, MODEL, vocabulary=vocabulary, font=box_font)
    svg = render(record, "grid", "svg", MODEL, vocabulary=vocabulary, font=box_font).decode()
    assert ">東<" in svg
    assert "Raylens Box" in svg


def test_what_no_font_has_is_drawn_as_its_code_point() -> None:
    fonts = choose_fonts()
    assert fonts.drawable("ok ·␣↵⇥⇤⍽‹›◌∅…✓") == "ok ·␣↵⇥⇤⍽‹›◌∅…✓"
    assert fonts.drawable("\U0001f9ff") in ("\U0001f9ff", "‹1F9FF›")


def test_signs_of_blanks_are_drawn_as_the_guide_says() -> None:
    """Whatever fonts are installed."""
    record, vocabulary = make([b"\r", b"\n", b"\t", "\u00a0".encode()], ("resid_post",), layers=1, k=1)
    svg = render(record, "grid", "svg", MODEL, vocabulary=vocabulary).decode()
    assert all(f">{sign}<" in svg for sign in "⇤↵⇥⍽")


def test_fit_and_wrap_measure_what_they_draw() -> None:
    fonts = choose_fonts()
    assert fonts.fit("iiii", 0.2, 10) == "iiii"
    assert fonts.fit("WWWW", 0.2, 10) == "…"
    assert fonts.fit("WWWW", 0.6, 10) == "WWWW"
    assert fonts.fit("W", 0.0, 10) == ""
    text = "The capital of France is Paris and that of Italy is Rome"
    lines = fonts.wrap(text, 1.2, 10, 9)
    assert " ".join(lines) == text
    assert all(fonts.width(line, 10) <= 1.2 for line in lines)
    short = fonts.wrap(text, 1.2, 10, 2)
    assert short[0] == lines[0]
    assert len(short) == 2
    assert short[1].endswith("…")
    assert "".join(fonts.wrap("‹202E›" * 9, 1.2, 10, 99)) == "‹202E›" * 9
    assert fonts.wrap("WWW", 0.01, 10, 9) == ["W", "W", ""]


def test_spans() -> None:
    assert spans([3]) == "3"
    assert spans([0, 1, 2, 7, 9, 10]) == "0 to 2, 7, 9 to 10"
    assert spans(range(0, 40, 2)) == "0, 2, 4, 6, (15 more), 38"


def test_coverage_of_a_whole_prompt() -> None:
    assert coverage(fixed()[0], [0, 1, 2]) == "positions 0 to 2 of 0 to 2"


def test_an_escape_is_not_torn_by_the_arabic_beside_it() -> None:
    """Its first sign and digits would be laid out with the Arabic, from the right; marks of direction keep it whole."""
    record, vocabulary = make([" مرحبا".encode(), b"\x01", " שלום\x01".encode()], ("resid_post",), layers=2)
    mark = "\u200e"
    shown = {text.get_text() for text in drawn("grid", record, vocabulary).axes[0].texts}
    assert f"·שלום{mark}‹0001›{mark}" in shown
    assert "‹0001›" in shown
    quoted = [text for text in (t.get_text() for t in drawn("rank", record, vocabulary).axes[0].texts) if "prompt:" in text]
    assert quoted == [f"{mark}prompt:  مرحبا{mark}‹0001›{mark} שלום{mark}‹0001›{mark}"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_in_a_png(kind: str) -> None:
    """Where it should be: its box has ink and another colour behind it."""
    record, vocabulary = make(HOSTILE, layers=2)
    pixels = np.asarray(Image.open(BytesIO(render(record, kind, "png", MODEL, vocabulary=vocabulary))).convert("RGB"))
    texts = [text for text in drawn(kind, record, vocabulary).axes[0].texts if text.get_text().strip()]
    assert len(texts) > 15
    for text in texts:
        left, bottom, right, top = np.round(text.get_window_extent().extents).astype(int)
        box = pixels[pixels.shape[0] - top : pixels.shape[0] - bottom, left:right].reshape(-1, 3).astype(int)
        assert np.ptp(box.sum(axis=1)) > 100, text.get_text()


def test_a_full_stop_can_be_seen() -> None:
    """It is nearly two pixels wide and high, and not fitted to one."""
    record, vocabulary = make([b"."], ("resid_post",), layers=1)
    pixels = np.asarray(Image.open(BytesIO(render(record, "grid", "png", MODEL, vocabulary=vocabulary))).convert("L"))
    texts = [text for text in drawn("grid", record, vocabulary).axes[0].texts if text.get_text() == "."]
    left, bottom, right, top = np.round(texts[-1].get_window_extent().extents).astype(int)
    box = pixels[pixels.shape[0] - top - 2 : pixels.shape[0] - bottom + 2, left - 2 : right + 2]
    assert 3 < (255.0 - box).sum() / 255 < 5


def test_words_do_not_overlap_in_a_pdf() -> None:
    """Matplotlib gives marks of direction a width there, and takes it back from the word that follows."""
    record, vocabulary = make([" مرحبا".encode(), b"\x01", b"WW", " שלום\x01a".encode()], ("resid_post",), layers=2)
    for kind in KINDS:
        data = render(record, kind, "pdf", MODEL, vocabulary=vocabulary)
        streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
        page = b"".join(zlib.decompress(stream) for stream in streams if stream[:1] == b"x")
        moves = [float(move) for move in re.findall(rb"[)\[]\s+(-?[\d.]+)\s+\(", page)]
        assert len(moves) >= 5
        assert all(abs(move) < 250 for move in moves)  # thousandths of the font's size; a space has 318


@pytest.mark.parametrize("token", ["\U0001f9ff", "W", "x "])
def test_a_long_prompt_is_quoted_to_its_end(token: str) -> None:
    """However wide its characters are, or their code points where no font has them."""
    record, vocabulary = make([b" start", *[token.encode()] * 300, b" end"], ("resid_post",), layers=1)
    texts = [text.get_text() for text in drawn("rank", record, vocabulary).axes[0].texts]
    first = next(at for at, text in enumerate(texts) if text.startswith("prompt: "))
    last = next(at for at, text in enumerate(texts) if text.startswith("predicted next"))
    assert 1 <= last - first <= 3
    assert texts[last - 1].endswith("end")


def test_a_long_word_does_not_leave_its_line_empty() -> None:
    """It is broken, rather than moved below a short word."""
    lines = choose_fonts().wrap("prompt: " + "x" * 99, 3, 10, 9)
    assert lines[0].startswith("prompt: xxx")
