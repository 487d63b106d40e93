"""What a picture can be asked for beyond its defaults: a token, the layers that matter, pages."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raylens.storage.errors import UsageError
from raylens.storage.plots import FORMATS, grid, rank, trajectory, write
from raylens.storage.plots import render as render_files
from raylens.storage.plots.paging import parts
from raylens.storage.plots.request import Request, positions_of
from raylens.storage.record import Record
from raylens.storage.run import Run
from tests.builders import make_record
from tests.command import raylens_command
from tests.pictured import ENGLISH, HOSTILE, fixed, make, render
from tests.queried import write_run

# --- positions


def test_positions_by_the_words_of_a_run() -> None:
    """Of a prompt of eight tokens, of which four were lensed; A:B counts tokens, last those that were lensed."""
    record = make_record(0, tokens=8, positions=[1, 2, 5, 6])
    words = {"all": [1, 2, 5, 6], "last": [6], "last:3": [2, 5, 6], "last:9": [1, 2, 5, 6], "2": [2], "2:": [2, 5, 6], "-2:": [6]}
    assert {word: positions_of(record, word) for word in words} == words
    with pytest.raises(UsageError, match=r"none of them was lensed in prompt .*, which has 1 to 6"):
        positions_of(record, "3:5")


# --- a token that colours a grid


def test_grid_of_a_chosen_token() -> None:
    """Its rank, k + 1 where it is not among the k; its probability, nothing there. Cells still show the best tokens."""
    record, vocabulary = fixed()
    by_rank = grid.grid(record, vocabulary, Request("m", tokens=[1]))
    assert by_rank.values.tolist() == [[2, 2, 2], [1, 3, 3]]
    assert by_rank.texts == grid.grid(record, vocabulary, Request("m")).texts
    assert by_rank.scale.label == "rank of ·b, log scale"
    by_prob = grid.grid(record, vocabulary, Request("m", "prob", tokens=[1]))
    np.testing.assert_allclose(by_prob.values, [[0.25, 0.1, 0.1], [0.75, np.nan, np.nan]], rtol=1e-6)
    assert by_prob.captions[0].endswith("; grey: not in the stored top 2")
    by_logprob = grid.grid(record, vocabulary, Request("m", "logprob", tokens=[1]))
    np.testing.assert_allclose(by_logprob.values, np.log(by_prob.values), rtol=1e-6)


def test_grid_of_the_final_prediction() -> None:
    """That of each position: b, c and a."""
    record, vocabulary = fixed()
    picture = grid.grid(record, vocabulary, Request("m", "final_prob"))
    np.testing.assert_allclose(picture.values, [[0.25, 0.4, np.nan], [0.75, 0.6, 0.3]], rtol=1e-6)
    assert picture.scale.label == "probability of the token that layer 1 predicts"
    logprobs = grid.grid(record, vocabulary, Request("m", "final_logprob"))
    np.testing.assert_allclose(logprobs.values, np.log(picture.values), rtol=1e-6)
    assert logprobs.scale.low == -8


def tracked() -> tuple[Record, list[bytes | None]]:
    """With d tracked: rank 4 and logprob -7.5 everywhere."""
    record, vocabulary = fixed()
    stats = {"tracked_logprob": np.full((2, 3, 1), -7.5, np.float32), "tracked_rank": np.full((2, 3, 1), 400, np.uint32)}
    return replace(record, taps={"resid_post": replace(record.taps["resid_post"], stats=stats)}, tracked=[3]), vocabulary


def test_grid_of_a_tracked_token_is_exact() -> None:
    """Beyond the k too, on a scale that goes on beyond k; other tokens are as they were."""
    record, vocabulary = tracked()
    picture = grid.grid(record, vocabulary, Request("m", tokens=[3]))
    assert (picture.values == 400).all()
    assert (picture.scale.low, picture.scale.high) == (1, 1000)
    assert (grid.grid(record, vocabulary, Request("m", "logprob", tokens=[3])).values == -7.5).all()
    assert "grey" not in picture.captions[0]
    other = grid.grid(record, vocabulary, Request("m", tokens=[1]))
    assert other.values.tolist() == [[2, 2, 2], [1, 3, 3]]
    assert other.scale.high == 3


def test_grid_of_the_final_prediction_is_exact_where_the_run_has_its_rank() -> None:
    """At any rank; grey where the embedding's is not stored. It counts only for what the model's own last layer puts first."""
    record, vocabulary = fixed()
    lens = record.taps["resid_post"]
    stats = {
        "best_rank": np.array([[2, 1, 300], [1, 1, 1]], np.uint32),
        "best_logprob": np.array([[-1.5, -0.5, -9], [-0.25, -0.5, -1]], np.float32),
    }
    taps = {"resid_pre": replace(lens, layers=(0,), ids=lens.ids[:1], logprobs=lens.logprobs[:1], entropy=lens.entropy[:1])}
    stored = replace(record, taps={**taps, "resid_post": replace(lens, stats=stats)})
    picture = grid.grid(stored, vocabulary, Request("m"))
    np.testing.assert_array_equal(picture.values, [[2, 1, np.nan], [2, 1, 300], [1, 1, 1]])
    assert (picture.scale.low, picture.scale.high) == (1, 1000)
    assert "grey" in picture.captions[0]
    by_logprob = grid.grid(stored, vocabulary, Request("m", "final_logprob"))
    np.testing.assert_allclose(by_logprob.values[1:], stats["best_logprob"])
    # " a" is what position 2 alone predicts
    assert grid.grid(stored, vocabulary, Request("m", tokens=[0], positions=[2])).values[1:].tolist() == [[300], [1]]
    assert grid.grid(stored, vocabulary, Request("m", tokens=[0])).scale.high == 3

    stats["best_rank"][1, 2] = 2
    cut = grid.grid(stored, vocabulary, Request("m"))
    assert cut.values[1:].tolist() == [[2, 1, 3], [1, 1, 1]]
    assert cut.scale.high == 3


def test_a_trajectory_of_the_final_prediction_goes_beyond_the_stored_tokens() -> None:
    """Where its exact rank is stored; other tokens have points among the k best only, and the caption says so."""
    record, vocabulary = fixed()
    lens = record.taps["resid_post"]
    stats = {"best_rank": np.array([[2, 1, 300], [1, 1, 1]], np.uint32), "best_logprob": np.full((2, 3), -9, np.float32)}
    stored = replace(record, taps={"resid_post": replace(lens, stats=stats)})
    picture = trajectory.trajectories(stored, vocabulary, Request("m", "rank", positions=[2], tokens=[0]))
    assert picture.values.tolist() == [[300, 1]]
    assert "gaps" not in picture.captions[1]
    several = trajectory.trajectories(stored, vocabulary, Request("m", "rank", positions=[2], tokens=[0, 1]))
    np.testing.assert_array_equal(several.values, [[300, 1], [2, np.nan]])
    assert several.captions[1].endswith("; gaps in a line: its token is not in the top 2 there")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("m", tokens=[1, 2]), "--token: a grid is coloured by one token, not 2; name it by id:N"),
        (Request("m", "entropy", tokens=[1]), "--token: entropy does not depend on a token; use rank, prob or logprob"),
        (
            Request("m", "final_prob", tokens=[1]),
            "--token: final_prob does not depend on a token; use rank, prob or logprob",
        ),
    ],
)
def test_stats_that_are_of_no_chosen_token(request_: Request, message: str) -> None:
    """Refused by the option's name."""
    with pytest.raises(UsageError) as refusal:
        grid.grid(*fixed(), request_)
    assert str(refusal.value) == message


# --- the layers that matter


def moving() -> tuple[Record, list[bytes | None]]:
    """Six layers, one position; the prediction, token 0, has rank 3, 3, 1, 2, 2, 1, and its layer's best more or less of 3 %."""
    record, vocabulary = make(ENGLISH[:1], ("attn_out", "resid_mid", "resid_post"), layers=6, k=3)
    orders = [[1, 2, 0], [1, 2, 0], [0, 1, 2], [1, 0, 2], [1, 0, 2], [0, 1, 2]]
    percents = {"attn_out": [3.9, 2, 2, 2, 2, 2], "resid_mid": [90] * 6, "resid_post": [2, 2, 4.1, 3.9, 50, 2]}
    taps = {
        name: replace(
            lens,
            ids=np.array(orders, np.uint32)[:, None],
            logprobs=np.log(np.array(percents[name])[:, None, None] / np.array([100, 200, 400])).astype(np.float32),
        )
        for name, lens in record.taps.items()
    }
    return replace(record, taps=taps), vocabulary


def shown(picture: rank.RankPicture) -> list[int]:
    return list(dict.fromkeys(layer for layer, _ in picture.rows))


def test_layers_where_the_prediction_moves() -> None:
    """The largest steps in the logarithm of the rank first: 3 to 1, then the later of 1 to 2 and 2 to 1."""
    record, vocabulary = moving()
    assert shown(rank.rank(record, vocabulary, Request("m", important=1))) == [2]
    picture = rank.rank(record, vocabulary, Request("m", important=2))
    assert shown(picture) == [2, 5]
    assert picture.breaks == (3,)
    assert picture.captions[-1] == "2 of 6 layers: those where the predicted token's rank changes most"
    assert shown(rank.rank(record, vocabulary, Request("m", important=90))) == list(range(6))


def test_layers_where_the_prediction_moves_beyond_the_stored_tokens() -> None:
    """Exact ranks tell moves among tokens that are not kept; they count only where they are of the predicted token."""
    record, vocabulary = moving()
    lens = record.taps["resid_post"]
    exact = replace(lens, stats={"best_rank": np.array([900, 4, 3, 2, 1, 1], np.uint32)[:, None]})
    found = replace(record, taps={**record.taps, "resid_post": exact})
    assert shown(rank.rank(found, vocabulary, Request("m", important=1))) == [1]
    other = replace(lens, stats={"best_rank": np.array([900, 4, 3, 2, 1, 2], np.uint32)[:, None]})
    found = replace(record, taps={**record.taps, "resid_post": other})
    assert shown(rank.rank(found, vocabulary, Request("m", important=1))) == [2]


def test_layers_by_the_threshold_of_logitlens4llms() -> None:
    """Any of three taps, not the middle residual, has more than 3 of whole percents that are cut off: 3.9 % is not enough."""
    record, vocabulary = moving()
    picture = rank.rank(record, vocabulary, Request("m", threshold=3))
    assert shown(picture) == [2, 4]
    assert picture.captions[-1].startswith(
        "2 of 6 layers: those where a token of attn_out, mlp_out, resid_post has more than 3 %"
    )
    assert shown(rank.rank(record, vocabulary, Request("m", threshold=2))) == [0, 2, 3, 4]
    with pytest.raises(UsageError, match="--important-threshold 60: no layer of prompt 'p' has a token of more"):
        rank.rank(record, vocabulary, Request("m", threshold=60))
    with pytest.raises(UsageError, match="two rules; choose one"):
        rank.rank(record, vocabulary, Request("m", threshold=60, important=1))


# --- pages


def test_parts_are_few_and_alike() -> None:
    """None longer than allowed, none a scrap."""
    for count in range(1, 200):
        lengths = [part.stop - part.start for part in parts(count, 24)]
        assert sum(lengths) == count
        assert max(lengths) <= 24
        assert max(lengths) - min(lengths) <= 1
        assert len(lengths) == -(-count // 24)


def test_pages_of_a_grid_are_the_grid() -> None:
    """All positions unless told, each cell on one page, the first positions and the last layers first."""
    record, vocabulary = make(ENGLISH * 5, ("resid_pre", "resid_post"), layers=80)
    whole = grid.grid(record, vocabulary, Request("m", positions=range(60)))
    pages = grid.pages(record, vocabulary, Request("m", pages=True))
    assert [page.values.shape for page in pages] == [(41, 20), (40, 20)] * 3
    halves = [
        np.concatenate([upper.values[::-1], lower.values[::-1]]) for upper, lower in zip(pages[::2], pages[1::2], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole.values[::-1])
    assert [page.has_embedding for page in pages] == [False, True] * 3
    assert pages[3].captions[-1] == "page 4 of 6: position 20 to position 39, emb to layer 38"
    assert pages[2].inputs == whole.inputs[20:40]
    assert pages[2].texts[-1] == whole.texts[-1][20:40]
    assert "not shown" not in pages[0].captions[1]
    stepped = grid.pages(record, vocabulary, Request("m", pages=True, positions=range(30), layer_step=4))
    assert [page.values.shape for page in stepped] == [(21, 15)] * 2
    assert stepped[0].rows[-1] == "layer 79"


def test_pages_of_a_rank_picture_tear_no_layer() -> None:
    """Position by position, the last layers first; by default the last position alone."""
    record, vocabulary = make(ENGLISH, layers=40)
    pages = rank.pages(record, vocabulary, Request("m", pages=True, positions=[2, 5]))
    assert [[page.rows[0][0], page.rows[-1][0]] for page in pages] == [[27, 39], [13, 26], [0, 12]] * 2
    assert all(len(page.rows) == 4 * len(shown(page)) <= 64 for page in pages)
    whole = rank.rank(record, vocabulary, Request("m", positions=[2]))
    np.testing.assert_array_equal(np.concatenate([page.values for page in pages[2::-1]]), whole.values)
    assert pages[4].captions[-1] == "page 5 of 6: layer 13 to layer 26"
    assert pages[0].captions[0] != pages[3].captions[0]
    assert len(rank.pages(record, vocabulary, Request("m", pages=True))) == 3
    each = trajectory.pages(record, vocabulary, Request("m", pages=True, positions=[2, 5]))
    assert ["position 2" in picture.captions[2] for picture in each] == [True, False]


def test_pages_in_files(tmp_path: Path) -> None:
    """Numbered so that they sort; one file of PDF."""
    record, vocabulary = make(ENGLISH * 2, ("resid_post",), layers=2)
    request = Request("m", pages=True, positions=range(24))
    paths = write(record, "trajectory", tmp_path / "a.b.png", request, vocabulary=vocabulary)
    assert [path.name for path in paths] == [f"a.b-{number:02}.png" for number in range(1, 25)]
    assert sorted(tmp_path.iterdir()) == paths
    for path in paths:
        Image.open(path).verify()
    assert [path.name for path in write(record, "grid", tmp_path / "g.svg", request, vocabulary=vocabulary)] == ["g-1.svg"]
    (pdf,) = write(record, "trajectory", tmp_path / "t.pdf", request, vocabulary=vocabulary)
    assert pdf.name == "t.pdf"
    assert len(re.findall(rb"/Type /Page\b", pdf.read_bytes())) == 24


@pytest.mark.parametrize("suffix", FORMATS)
def test_pages_are_the_same_bytes_each_time(suffix: str) -> None:
    """Of all formats; and without pages there is one file."""
    record, vocabulary = make(HOSTILE * 2, layers=3)
    pages = [render_files(record, "grid", suffix, Request("m", pages=True), vocabulary=vocabulary) for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(pages[0]) == (1 if suffix == "pdf" else 3)
    assert b"CreationDate" not in pages[0][0]
    assert render(record, "grid", suffix, Request("m"), vocabulary=vocabulary) not in pages[0]


# --- by the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Seven prompts of four layers, two of tracked tokens."""
    return write_run(tmp_path_factory.mktemp("store"))


def plot(run: Run, address: str, *arguments: str) -> "tuple[int, str]":
    """Exit code and what was said of ``raylens plot``."""
    done = raylens_command("plot", address, *arguments, "--store", str(run.folder.root.parents[1]))
    return done.returncode, done.stdout + done.stderr


def test_by_the_command(run: Run, tmp_path: Path) -> None:
    """A token, pages, important layers; of one prompt and of all."""
    prompt = f"demo/{run.entries[0].id}"
    code, said = plot(run, prompt, "--token", "id:1", "--stat", "logprob", "--pages", "-o", str(tmp_path / "g.png"))
    assert (code, said) == (0, f"{tmp_path / 'g-1.png'}\n")
    code, said = plot(run, prompt, "--kind", "rank", "--important", "2", "--json", "-o", str(tmp_path / "r.svg"))
    assert code == 0
    assert f'"file":"{tmp_path / "r.svg"}"' in said
    assert "2 of 4 layers" in (tmp_path / "r.svg").read_text("utf-8")
    options = ("--kind", "trajectory", "--positions", "1:3", "--pages", "--format", "svg")
    code, said = plot(run, "demo", "--all", *options, "-o", str(tmp_path / "all"))
    assert (code, said) == (0, f"14 pictures: {tmp_path / 'all'}\n")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        f"{index}-{page}.svg" for index in range(7) for page in (1, 2)
    }


def test_prompts_that_lack_a_position(run: Run, tmp_path: Path) -> None:
    """The others are drawn; how many are not is said at the end, and only where all are it is an error."""
    has = {"all": range(7), "5": (3, 5), "8": (), "2": range(7)}
    for positions, indexes in has.items():
        folder = tmp_path / positions
        code, said = plot(run, "demo", "--all", "--positions", positions, "--json", "-o", str(folder))
        assert {path.name for path in folder.iterdir()} == {f"{index}.png" for index in indexes}
        lacking = 7 - len(indexes)
        assert code == (0 if indexes else 2)
        assert (f'"pictures":{len(indexes)},"not_drawn":{lacking}' in said) == bool(indexes)
        words = {0: "", 5: f"raylens: 5 of 7 prompts are not drawn: --positions '{positions}': none of them was lensed in"}
        assert words.get(lacking, f"none of the 7 prompts can be drawn: --positions '{positions}'") in said
        assert ("not drawn:" in said) == (lacking == 5)


@pytest.mark.parametrize(
    ("address", "arguments", "part"),
    [
        ("demo/x", ("--important", "2"), "--important: does not go with --kind grid"),
        ("demo/x", ("--kind", "trajectory", "--important-threshold", "3"), "--important-threshold: does not go with"),
        ("demo/x", ("--kind", "rank", "--token", "id:1"), "--token: does not go with --kind rank"),
        ("demo/x", ("--format", "svg"), "--format: does not go with one prompt"),
        ("demo", ("--kind", "aggregate", "--layer-step", "2"), "--layer-step: does not go with --kind aggregate"),
        ("demo", ("--kind", "aggregate", "--pages"), "--pages: does not go with --kind aggregate"),
        ("demo", ("--kind", "aggregate", "--all"), "--all: does not go with --kind aggregate"),
    ],
)
def test_what_does_not_go_together(run: Run, tmp_path: Path, address: str, arguments: tuple[str, ...], part: str) -> None:
    """Exit code 2, and the option by its name."""
    code, said = plot(run, address, *arguments, "-o", str(tmp_path / "x.png"))
    assert code == 2
    assert part in said
    assert list(tmp_path.iterdir()) == []
