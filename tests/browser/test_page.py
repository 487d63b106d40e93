"""The page of a record, in a real browser: what it shows is what the record has, by mouse, by keys and for screen readers."""

import dataclasses
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from playwright.sync_api import Locator, Page

from raylens.storage.labels import token_label
from raylens.storage.pages.page import record_page
from raylens.storage.plots.request import Request, prediction
from raylens.storage.plots.scales import entropy_scale, exact_rank_scale, kl_scale, logprob_scale, prob_scale, rank_scale
from raylens.storage.plots.standing import ranks
from raylens.storage.plots.trajectory import trajectories
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.vocabulary import write_vocabulary
from tests.browser.accessible import violations
from tests.browser.hostile import TEXTS, write_hostile_run
from tests.builders import commit_outcomes, make_generated, make_record, make_run
from tests.command import raylens_command
from tests.queried import with_stats

TAPS = ("attn_out", "resid_mid", "mlp_out", "resid_post")
Open = Callable[..., Page]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with one record of seven positions and five layers."""
    folder, _ = make_run(tmp_path / "store", 1)
    record = make_record(0, id="one", tokens=7, layers=tuple(range(5)), taps=TAPS, k=4, vocabulary_size=12, tracked=2)
    record = with_stats(dataclasses.replace(record, tracked=[1, 4]), 1)
    record.taps["resid_post"].stats["tracked_logprob"] *= 9  # to some that are far down
    record.taps["resid_post"].stats["best_rank"] = np.array([*range(20, 48), *[1] * 7], dtype=np.uint32).reshape(5, 7)
    record.taps["resid_post"].stats["best_logprob"] = np.array([*range(-28, 0), *[-0.5] * 7], dtype=np.float32).reshape(5, 7)
    commit_outcomes(folder, record)
    return Run(folder)


def record_of(run: Run, prompt: str = "one") -> Record:
    """The record of a prompt."""
    record = run[prompt]
    assert isinstance(record, Record)
    return record


def shown(open_page: Open, run: Run, folder: Path, prompt: str = "one", state: str = "", **options: object) -> Page:
    """The page of a prompt, drawn."""
    path = folder / "page.html"
    path.write_text(record_page(run, record_of(run, prompt)))
    page = open_page(f"{path.as_uri()}{state}", **options)
    page.wait_for_selector("html[data-ready]")
    return page


def cell(page: Page, layer: int, position: int) -> Locator:
    """A cell of the grid."""
    return page.locator(f"td[data-layer='{layer}'][data-position='{position}']")


@pytest.mark.parametrize("tap", TAPS)
def test_cells_show_the_best_tokens(run: Run, tmp_path: Path, open_page: Open, tap: str) -> None:
    """Last layer at the top; each cell's name says layer, position, token and probability."""
    page = shown(open_page, run, tmp_path, state=f"#tap={tap}")
    lens, vocabulary = record_of(run).taps[tap], run.vocabulary
    best = [[token_label(vocabulary, int(token)) for token in row] for row in lens.ids[::-1, :, 0]]
    rows = page.locator(".grid tbody tr")
    assert [row.locator("td").all_inner_texts() for row in rows.all()] == best
    assert rows.locator("th").all_inner_texts() == [f"layer {layer}" for layer in reversed(lens.layers)]
    probability = np.exp(float(lens.logprobs[2, 3, 0])) * 100
    name = cell(page, 2, 3).get_attribute("aria-label") or ""
    assert name.startswith(f"layer 2, position 3: {best[2][3]}, ")
    assert float(name.split(", ")[-1].removesuffix(" %").removeprefix("<")) == pytest.approx(probability, abs=0.5)


def test_tokens_read_and_next_frame_the_grid(run: Run, tmp_path: Path, open_page: Open) -> None:
    """A mark where the last layer predicts what comes."""
    page = shown(open_page, run, tmp_path)
    record = record_of(run)
    labels = [token_label(run.vocabulary, token) for token in record.token_ids]
    assert page.locator(".grid tfoot td").all_inner_texts() == labels
    final = record.taps["resid_post"].ids[-1, :, 0]
    following = [label + (" ✓" if int(final[at]) == record.token_ids[at + 1] else "") for at, label in enumerate(labels[1:])]
    assert page.locator(".grid thead tr:nth-child(2) td").all_inner_texts() == [*following, ""]


def painted(page: Page) -> np.ndarray:
    """[L, P] colours of the cells, first layer first."""
    rows = page.locator(".grid tbody tr").all()
    colours = [row.locator("td").evaluate_all("cells => cells.map(cell => cell.style.backgroundColor)") for row in rows]
    return np.array([[to_hex([int(part) / 255 for part in re.findall(r"\d+", one)]) for one in row] for row in colours[::-1]])


@pytest.mark.parametrize(
    ("stat", "tap"), [*((stat, "resid_post") for stat in ("rank", "prob", "logprob", "entropy", "kl")), ("rank", "mlp_out")]
)
def test_colours_are_those_of_the_picture(run: Run, tmp_path: Path, open_page: Open, stat: str, tap: str) -> None:
    """By the scale of the static grid, in steps of a 64th; that of exact ranks where the run has them."""
    page = shown(open_page, run, tmp_path, state=f"#tap={tap}")
    page.get_by_label("Colour").select_option(stat)
    record = record_of(run)
    lens, final = record.taps[tap], prediction(record)
    top = lens.logprobs[:, :, 0].astype(np.float64)
    values = {
        "rank": ranks(record, lens, final.ids),
        "prob": np.exp(top),
        "logprob": top,
        "entropy": lens.entropy.astype(np.float64),
        "kl": lens.stats["kl"].astype(np.float64),
    }[stat]
    rank = exact_rank_scale("") if tap == "resid_post" else rank_scale("", 4)
    made = {"rank": rank, "prob": prob_scale(""), "logprob": logprob_scale(""), "entropy": entropy_scale(""), "kl": kl_scale("")}
    scale = made[stat]
    steps = (-1 / 50, 0, 1 / 50)
    near = [
        scale.paint(values * (scale.high / scale.low) ** step if scale.log else values + step * (scale.high - scale.low))
        for step in steps
    ]
    found = np.array([[[int(one[at : at + 2], 16) / 255 for at in (1, 3, 5)] for one in row] for row in painted(page)])
    low, high = np.min(near, axis=0)[..., :3] - 0.03, np.max(near, axis=0)[..., :3] + 0.03
    assert ((low <= found) & (found <= high)).all()


@pytest.mark.parametrize(
    ("state", "grey"),
    [
        ("#tap=resid_post&stat=prob", None),
        ("#tap=resid_post&stat=prob&of=0&pin=0", "Grey: not in the stored top 4."),
        ("#tap=resid_post&stat=kl", None),
        ("#tap=mlp_out&stat=kl", "Grey: KL not stored."),
    ],
)
def test_what_grey_means_is_said(run: Run, tmp_path: Path, open_page: Open, state: str, grey: str | None) -> None:
    """Where there is some."""
    record = record_of(run)
    del record.taps["mlp_out"].stats["kl"]
    (tmp_path / "page.html").write_text(record_page(run, record))
    page = open_page(f"{(tmp_path / 'page.html').as_uri()}{state}")
    page.wait_for_selector("html[data-ready]")
    assert ("#d0d0d0" in painted(page)) == (grey is not None)
    caption = page.locator(".body .about").inner_text()
    assert grey in caption if grey else "Grey" not in caption


def test_a_place_shows_its_best_tokens_and_statistics(run: Run, tmp_path: Path, open_page: Open) -> None:
    """While the mouse is on a cell, and for the chosen one afterwards."""
    page = shown(open_page, run, tmp_path)
    record = record_of(run)
    lens = record.taps["resid_post"]
    labels = [
        [token_label(run.vocabulary, int(token)) for token in lens.ids[layer, position]] for layer, position in ((2, 3), (4, 6))
    ]
    cell(page, 2, 3).hover()
    assert page.locator(".best .token").all_inner_texts() == labels[0]
    shares = [float(text.removesuffix(" %").removeprefix("<")) for text in page.locator(".best .share").all_inner_texts()]
    assert shares == pytest.approx((np.exp(lens.logprobs[2, 3].astype(float)) * 100).tolist(), abs=0.51)
    assert page.locator("dt").all_inner_texts().count("rank of the final prediction") == 1
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    exact = f"{int(lens.stats['best_rank'][2, 3])} {token_label(run.vocabulary, int(lens.ids[4, 3, 0]))}"
    assert facts["rank of the final prediction"] == exact
    assert float(facts["entropy, nats"]) == pytest.approx(float(lens.entropy[2, 3]), abs=0.006)
    assert float(facts["KL to the final prediction, nats"]) == pytest.approx(float(lens.stats["kl"][2, 3]), abs=0.006)
    page.mouse.move(2, 2)
    assert page.locator(".best .token").all_inner_texts() == labels[1]


@pytest.mark.parametrize(("rank", "whose"), [(1, "the final prediction"), (11, "the model's own top token")])
def test_whose_logprob_is_told(run: Run, tmp_path: Path, open_page: Open, rank: int, whose: str) -> None:
    """Where the last stored layer does not put first what the model does, its statistics are of another token."""
    record = record_of(run)
    record.taps["resid_post"].stats["best_rank"][-1] = rank
    path = tmp_path / "page.html"
    path.write_text(record_page(run, record))
    page = open_page(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    names = page.locator("dt").all_inner_texts()
    assert [name for name in names if name.startswith("logprob of the") and "next" not in name] == [f"logprob of {whose}"]


def test_a_page_has_no_negative_zero(run: Run, tmp_path: Path, open_page: Open) -> None:
    """What rounds to nothing looks alike, whichever way it goes."""
    record = record_of(run)
    record.taps["resid_post"].stats["kl"][:] = -0.004
    path = tmp_path / "page.html"
    path.write_text(record_page(run, record))
    page = open_page(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert facts["KL to the final prediction, nats"] == "0.00"


def test_everything_by_keys_alone(run: Run, tmp_path: Path, open_page: Open) -> None:
    """From the controls to the grid, through it, a pin, and its removal; the bars' buttons too."""
    page = shown(open_page, run, tmp_path)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('td')"):
            break
    focused = "document.activeElement.getAttribute('aria-label') ?? ''"
    assert page.evaluate(focused).startswith("layer 4, position 6")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused).startswith("layer 3, position 5")
    page.keyboard.press("Control+Home")
    assert page.evaluate(focused).startswith("layer 4, position 0")
    page.keyboard.press("PageDown")
    page.keyboard.press("End")
    assert page.evaluate(focused).startswith("layer 0, position 6")
    page.keyboard.press("ArrowDown")  # at the edge it stays
    assert page.evaluate(focused).startswith("layer 0, position 6")
    best = token_label(run.vocabulary, int(record_of(run).taps["resid_post"].ids[0, 6, 0]))
    before = page.locator("#pins li .token").all_inner_texts()
    page.keyboard.press("Enter")
    assert page.locator("#pins li .token").all_inner_texts() == list(dict.fromkeys([*before, best]))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('.best button')")
    page.get_by_role("button", name=f"unpin {best}", exact=True).press("Enter")
    assert best not in page.locator("#pins li .token").all_inner_texts()


def test_pins_are_drawn_and_told_in_numbers(run: Run, tmp_path: Path, open_page: Open) -> None:
    """Ranks by layer; beyond the k best as such, but those of tracked tokens are exact."""
    record = record_of(run)
    lens = record.taps["resid_post"]
    tracked, other = record.tracked[0], next(token for token in range(12) if token not in record.tracked)
    page = shown(open_page, run, tmp_path, state=f"#pin={other},{tracked}&position=3")
    page.get_by_text("The same in numbers").click()
    rows = [row.locator("td").all_inner_texts() for row in page.locator(".trajectories tbody tr").all()]
    column = record.positions.index(3)
    known = [ranks(record, lens, np.full(7, token, dtype=np.uint32))[:, column].astype(int) for token in (other, tracked)]
    assert rows == [[">4" if rank > 4 else str(rank), str(exact)] for rank, exact in zip(*known, strict=True)]
    assert page.locator("svg.trajectory path").count() == 2


def test_what_is_known_of_a_tracked_token_is_drawn_where_it_is(run: Run, tmp_path: Path, open_page: Open) -> None:
    """At any rank and logprob, on an axis that reaches it; no two values at one height."""
    record = record_of(run)
    stats = record.taps["resid_post"].stats
    column = record.positions.index(3)
    for stat, name in (("rank", "tracked_rank"), ("logprob", "tracked_logprob")):
        page = shown(open_page, run, tmp_path, state=f"#pin={record.tracked[0]}&position=3&stat={stat}")
        heights = [float(dot.get_attribute("cy") or 0) for dot in page.locator("svg.trajectory circle").all()]
        values = stats[name][:, column, 0].astype(float)
        assert len(heights) == len(values)
        assert max(values) > 5 or min(values) < -12  # beyond the k best, and beyond the axis of what is not known exactly
        order = np.argsort(values if stat == "rank" else -values, kind="stable")
        placed = np.array(heights)[order]
        assert (np.diff(placed)[np.abs(np.diff(values[order])) > 0.5] > 0).all()


def test_what_is_scrolled_below_the_rows_names_stays_apart_from_them(tmp_path: Path, open_page: Open) -> None:
    """Between a name and the token that goes on behind it are a gap and a line."""
    folder, _ = make_run(tmp_path / "store", 1)
    commit_outcomes(folder, make_record(0, id="one", tokens=100, layers=(0, 1)))
    page = shown(open_page, Run(folder), tmp_path)
    page.evaluate("document.querySelector('.scroll').scrollLeft = 300")
    for name in page.locator(".grid tbody th").all():
        with Image.open(BytesIO(name.screenshot())) as picture:
            middle = np.asarray(picture.convert("RGB"))[4:-4].astype(int)
            line, gap = middle[:, -2:-1], middle[:, -8:-4]  # a width of parts of a pixel is rounded up
        assert (line == line[0, 0]).all()
        assert (gap == gap[0, 0]).all()
        assert np.abs(line[0, 0] - gap[0, 0]).max() > 100


def test_generated_positions_are_marked(run: Run, tmp_path: Path, open_page: Open) -> None:
    """And told, as in pictures; a prompt that was only read has none of it."""
    folder, _ = make_run(tmp_path / "generated", 1)
    commit_outcomes(folder, make_record(0, id="one", tokens=6, generated=make_generated(start=3, count=3)))
    page = shown(open_page, Run(folder), tmp_path)
    heads = page.locator(".grid thead tr:first-child th[scope=col]")
    lines = "heads => heads.map(head => [head.innerText, getComputedStyle(head).textDecorationLine])"
    assert heads.evaluate_all(lines) == [["2", "none"], ["3", "underline"], ["4", "underline"]]
    about = page.locator(".about").all_inner_texts()
    assert "generated: 3 to 5" in about[0]
    assert "Underlined: positions of generated tokens" in about[1]
    read = shown(open_page, run, tmp_path)
    assert {style for _, style in read.locator(".grid thead th").evaluate_all(lines)} == {"none"}
    assert "generated" not in read.locator("body").inner_text()


def test_every_value_of_the_axis_is_whole(run: Run, tmp_path: Path, open_page: Open) -> None:
    """Ranks of the largest vocabularies too."""
    record = record_of(run)
    ranks_of = record.taps["resid_post"].stats["tracked_rank"]
    ranks_of[:, :, 0] = np.where(ranks_of[:, :, 0] == 1, 1, 999_999)
    path = tmp_path / "page.html"
    path.write_text(record_page(run, record))
    page = open_page(f"{path.as_uri()}#pin={record.tracked[0]}&position=3")
    page.wait_for_selector("html[data-ready]")
    texts = page.locator("svg.trajectory text")
    assert "1,000,000" in texts.all_text_contents()
    assert min(texts.evaluate_all("texts => texts.map(text => text.getBBox().x)")) >= 0


@pytest.mark.parametrize("stat", ["rank", "prob", "logprob"])
def test_gaps_of_a_line_are_told_as_in_pictures(run: Run, tmp_path: Path, open_page: Open, stat: str) -> None:
    """And nothing of them where there are none: of a tracked token, and where what is beyond the k best has a line of its own."""
    record = record_of(run)
    lens = record.taps["resid_post"]
    column = record.positions.index(3)
    kept = [(lens.ids[:, column] == token).any(axis=1).all() for token in range(12)]
    tracked, other = record.tracked[0], next(token for token in range(12) if token not in record.tracked and not kept[token])
    words = "; gaps in a line: its token is not in the top 4 there"
    both, one, alone = (
        shown(open_page, run, tmp_path, state=f"#pin={pins}&position=3&stat={stat}").locator(".trajectories h3").inner_text()
        for pins in (f"{tracked},{other}", tracked, other)
    )
    assert both.endswith(words)
    assert not one.endswith(words)
    assert alone.endswith(words) == (stat != "rank")
    assert trajectories(record, run.vocabulary, Request("m", stat, positions=[3], tokens=[other])).captions[1].endswith(words)


def test_the_first_tab_goes_to_the_first_control(run: Run, tmp_path: Path, open_page: Open) -> None:
    """And not into the grid, which the page has moved to show the last position."""
    page = shown(open_page, run, tmp_path)
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement === document.querySelector('a[href], button, input, select, summary')")
    assert first, page.evaluate("document.activeElement.outerHTML")


def test_a_search_finds_tokens_and_colours_by_one(run: Run, tmp_path: Path, open_page: Open) -> None:
    """With how many places of the tap have it; chosen, the cells show its rank."""
    page = shown(open_page, run, tmp_path)
    record = record_of(run)
    lens = record.taps["resid_post"]
    page.get_by_label("Find a token").fill("t1")
    wanted = [token for token in range(12) if "t1" in f"t{token}" and (lens.ids == token).any()]
    found = {text.rsplit(" ", 1)[0]: int(text.rsplit(" ", 1)[1]) for text in page.locator("#found button").all_inner_texts()}
    assert found == {f"·t{token}": int((lens.ids == token).sum()) for token in wanted}
    chosen = next(token for token in wanted if token not in record.tracked)
    page.get_by_role("button", name=f"pin ·t{chosen}, in").click()
    assert page.locator("#of").input_value() == str(chosen)
    values = ranks(record, lens, np.full(7, chosen, dtype=np.uint32))
    colours = painted(page)
    assert len(set(colours[values == 5])) <= 1
    assert all((colours[values == rank] == colours[values == rank][0]).all() for rank in np.unique(values))


def test_the_address_holds_the_state(run: Run, tmp_path: Path, open_page: Open) -> None:
    """A copied address shows the same."""
    page = shown(open_page, run, tmp_path)
    page.get_by_label("Tap").select_option("mlp_out")
    page.get_by_label("Colour").select_option("entropy")
    cell(page, 1, 2).click()
    page.wait_for_url("**layer=1&position=2**")
    address = page.url
    again = open_page(address)
    again.wait_for_selector("html[data-ready]")
    assert again.get_by_label("Tap").input_value() == "mlp_out"
    assert again.get_by_label("Colour").input_value() == "entropy"
    assert (again.locator("td[aria-selected]").get_attribute("aria-label") or "").startswith("layer 1, position 2")
    assert (painted(again) == painted(page)).all()


@pytest.mark.parametrize(
    "state", ["#tap=nope&stat=nope&layer=99&position=99&pin=x,-1,99999999999&of=abc&from=1e9", "#%", "#pin="]
)
def test_a_wrong_address_shows_what_there_is(run: Run, tmp_path: Path, open_page: Open, state: str) -> None:
    """Whatever does not exist is left out."""
    page = shown(open_page, run, tmp_path, state=state)
    assert page.locator(".grid tbody tr").count() == 5


def test_long_prompts_are_turned_page_by_page(tmp_path: Path, open_page: Open) -> None:
    """A hundred positions at a time, the last ones first."""
    folder, _ = make_run(tmp_path / "store", 1)
    commit_outcomes(folder, make_record(0, id="one", tokens=230, layers=(0, 1)))
    page = shown(open_page, Run(folder), tmp_path)
    heads = page.locator(".grid thead tr:first-child th[scope=col]")
    assert heads.all_inner_texts() == [str(position) for position in range(200, 230)]
    page.get_by_role("button", name="earlier positions").click()
    assert heads.all_inner_texts() == [str(position) for position in range(100, 200)]
    page.get_by_label("Positions from").fill("37")
    page.get_by_label("Positions from").press("Enter")
    assert heads.all_inner_texts() == [str(position) for position in range(37, 137)]
    page.get_by_role("button", name="later positions").click()
    assert heads.all_inner_texts() == [str(position) for position in range(137, 230)]
    assert page.get_by_role("button", name="later positions").is_disabled()


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_text_stays_text(tmp_path: Path, open_page: Open, number: int) -> None:
    """Nothing runs, nothing is asked for, and what is shown is all there."""
    run = write_hostile_run(tmp_path / "store")
    page = shown(open_page, run, tmp_path, TEXTS[number])
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, embed, link, [onload], [onerror]").count() == 0
    assert page.locator(".grid tbody td").count() == 18
    text = page.locator("body").inner_text()
    assert not any(character in text for character in "\u202e\u2066\u200f\x00\x1b\x7f")


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_the_page_is_accessible(run: Run, tmp_path: Path, open_page: Open, width: int, colours: str) -> None:
    """By axe-core's rules; nor does the page itself scroll sideways."""
    page = shown(open_page, run, tmp_path, width=width, colours=colours)
    page.get_by_label("Find a token").fill("t")
    page.get_by_text("The same in numbers").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_short_prompt_leaves_no_gap_beside_its_grid(run: Run, tmp_path: Path, open_page: Open) -> None:
    """What is told of a place begins where the columns end."""
    page = shown(open_page, run, tmp_path)
    table, detail = (page.locator(name).bounding_box() for name in (".grid", ".detail"))
    assert table is not None
    assert detail is not None
    assert 0 < detail["x"] - (table["x"] + table["width"]) < 50


def test_print_leaves_the_controls_out(run: Run, tmp_path: Path, open_page: Open) -> None:
    """The grid whole, with its scale."""
    page = shown(open_page, run, tmp_path)
    page.emulate_media(media="print")
    assert not page.get_by_label("Tap").is_visible()
    assert page.locator("#gradient").is_visible()
    assert page.locator(".grid tbody td").last.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"


def test_a_hundred_positions_fit_a_megabyte(tmp_path: Path) -> None:
    """Thirty-two layers, four taps, k = 10, although every token is another word."""
    record = make_record(0, tokens=100, layers=tuple(range(32)), taps=TAPS, k=10, vocabulary_size=49152)
    folder, _ = make_run(tmp_path, 1)
    write_vocabulary(folder.vocabulary, [f" word{number}".encode() for number in range(49152)])
    assert len(record_page(Run(folder), record).encode()) < 1_000_000


def test_the_command_writes_the_page(run: Run, tmp_path: Path, open_page: Open) -> None:
    """``raylens export RUN/PROMPT --format html``, of some positions; whole runs are refused with the way to do it."""
    store = str(run.folder.root.parent.parent)
    output = tmp_path / "some.html"
    arguments = ("export", "demo/one", "-s", store, "--format", "html", "--positions", "2:5", "-o", str(output))
    done = raylens_command(*arguments)
    assert done.returncode == 0, done.stderr
    page = open_page(output.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".grid thead tr:first-child th[scope=col]").all_inner_texts() == ["2", "3", "4"]
    refused = raylens_command("export", "demo", "-s", store, "--format", "html", "-o", str(output))
    assert refused.returncode == 2
    assert "demo/PROMPT" in refused.stderr


def test_heads_are_shown_of_the_layers_that_have_them(tmp_path: Path, open_page: Open) -> None:
    """Behind the taps of the block, which are shown first; a tenth head comes after the second."""
    folder, _ = make_run(tmp_path / "store", 1)
    record = make_record(0, id="one", tokens=3, layers=tuple(range(4)), taps=("attn_out", "resid_post"), vocabulary_size=12)
    heads = make_record(0, tokens=3, layers=(1, 2), taps=("head_10", "head_2"), vocabulary_size=12, seed=5)
    commit_outcomes(folder, dataclasses.replace(record, taps={**heads.taps, **record.taps}))
    run = Run(folder)
    page = shown(open_page, run, tmp_path)
    assert page.locator("#tap option").all_inner_texts() == ["attn_out", "resid_post", "head_2", "head_10"]
    assert page.locator("#tap").input_value() == "resid_post"
    page.locator("#tap").select_option("head_2")
    rows = page.locator(".grid tbody tr")
    assert rows.locator("th").all_inner_texts() == ["layer 2", "layer 1"]
    lens = record_of(run).taps["head_2"]
    tokens = [[token_label(run.vocabulary, int(token)) for token in lens.ids[row, :, 0]] for row in (1, 0)]
    assert [rows.nth(row).locator("td").all_inner_texts() for row in range(2)] == tokens


def test_records_without_some_taps_or_statistics(tmp_path: Path, open_page: Open) -> None:
    """The last tap there is; KL is offered where a tap has it, and is no colour of the others."""
    folder, _ = make_run(tmp_path / "store", 1)
    commit_outcomes(folder, dataclasses.replace(make_record(0, id="one", taps=("mlp_out",), k=1, positions=[3]), metadata={}))
    page = shown(open_page, Run(folder), tmp_path)
    assert page.locator("#tap option").all_inner_texts() == ["mlp_out"]
    assert "kl" not in page.locator("#stat option").all_inner_texts()
    assert page.locator(".grid tbody td").count() == 2
    folder, _ = make_run(tmp_path / "other", 1)
    record = with_stats(make_record(0, id="one", taps=("mlp_out", "resid_post"), k=1, tracked=2), 1)
    record.taps["mlp_out"].stats.clear()
    commit_outcomes(folder, dataclasses.replace(record, tracked=[1, 4]))
    page = shown(open_page, Run(folder), tmp_path, state="#stat=kl&tap=mlp_out")
    assert len(np.unique(painted(page))) == 1
    page.get_by_label("Tap").select_option("resid_post")
    assert len(np.unique(painted(page))) > 1
