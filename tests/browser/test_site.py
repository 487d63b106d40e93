"""``raylens view``: the real command over real stores, in a real browser."""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from raylens.storage.labels import text_label
from raylens.storage.pages.page import policy
from raylens.storage.pulse import Pulse, pid_namespace, write_pulse
from raylens.storage.repair import repair
from raylens.storage.site.guard import POLICY
from raylens.storage.store import open_store
from raylens.storage.taps import TAPS
from tests.browser.accessible import violations
from tests.browser.hostile import TEXTS, write_hostile_run
from tests.browser.viewing import Site, viewing
from tests.builders import commit_outcomes, make_failure, make_record, make_run
from tests.command import raylens_command
from tests.queried import write_run
from tests.waiting import wait_until

Open = Callable[..., Page]
View = Callable[..., Site]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same nine prompts, two of which failed."""
    folder = tmp_path_factory.mktemp("store")
    write_run(folder, name="first", track=("id:1", "field:own"))
    write_run(folder, name="second", lens_seed=5)
    return folder


@pytest.fixture(scope="module")
def site(store: Path) -> Iterator[Site]:
    """The store's site, for all tests of the module that only read."""
    with_site = viewing(store)
    yield with_site
    assert with_site.stop() == 0


def pages(page: Page) -> list[str]:
    """The addresses that the page links to, without what comes after #."""
    found = page.locator("a[href]").evaluate_all("links => links.map(link => link.href)")
    return [address.split("#")[0] for address in found]


def test_every_page_leads_on_and_has_its_json(site: Site, open_page: Open) -> None:
    """Crawled from the first page: all links work, and each page names its JSON."""
    seen: set[str] = set()
    waiting = [site.url("/")]
    while waiting:
        address = waiting.pop()
        kind = re.sub(r"/runs/[^/]+", "/runs/RUN", urlsplit(address).path)
        if kind in seen or "/api/" in kind:
            continue
        seen.add(kind)
        page = open_page(address)
        links = pages(page)
        (api,) = [link for link in links if "/api/" in link]
        answer = site.get(api.removeprefix(site.url("")))
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert isinstance(answer.json(), dict)
        waiting += links
        page.context.close()
    of_a_run = {f"/runs/RUN{rest}" for rest in ("", "/prompts", "/prompt", "/tokens", "/aggregate")}
    assert seen == {"/", "/compare", *of_a_run}


def test_the_runs_are_listed_with_what_they_came_to(site: Site, open_page: Open) -> None:
    """Newest first."""
    page = open_page(site.url("/"))
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("tbody tr").all()]
    assert [row[0] for row in rows] == ["second", "first"]
    assert rows[0][1:7] == ["complete", "made-up", "made-up.jsonl", "7", "2", "9"]


def test_the_list_says_which_runs_go_on(tmp_path: Path, view: View, open_page: Open) -> None:
    """Complete, at work, or ended before it was done; as the command's list of states has them."""
    for name, driver in (("complete", None), ("running", os.getpid()), ("died", 2**22 + 1), ("stopped", None)):
        folder, _ = make_run(tmp_path, 2, name=name)
        commit_outcomes(folder, *(make_record(index) for index in range(2 if name == "complete" else 1)))
        if driver is not None:
            pulse = Pulse(1, socket.gethostname(), driver, time.time(), 1, 1, 0, 0, 0, 0, 0, "", pid_namespace())
            write_pulse(folder, pulse)
    site = view(tmp_path)
    rows = [row.locator("th, td").all_inner_texts() for row in open_page(site.url("/")).locator("tbody tr").all()]
    assert [row[1] for row in rows] == [row[0] for row in rows]
    listed = site.get("/api/").json()
    assert {run["state"] for run in listed["runs"]} == {"complete", "running", "died", "stopped"}  # type: ignore[index]


def test_prompts_are_found_by_text_id_metadata_and_outcome(site: Site, store: Path, open_page: Open) -> None:
    """Each alone, and the address holds them."""
    run = open_store(store)["first"]
    page = open_page(site.url("/runs/first/prompts"))
    ids = page.locator(".prompts a bdi")
    expect(ids).to_have_text([text_label(entry.id) for entry in run.entries])
    page.get_by_label("Text or id contains").fill("A/B'2")
    page.get_by_role("button", name="Find").click()
    expect(ids).to_have_text(["a/b'2\"…"])
    assert "text=" in page.url
    page.goto(site.url("/runs/first/prompts?key=a.b&value=a.b1"))
    expect(ids).to_have_text(["a/b'1\"…", "a/b'5\"…"])
    page.goto(site.url("/runs/first/prompts?outcome=failures"))
    expect(ids).to_have_count(2)
    ids.first.click()
    expect(page.get_by_role("alert")).to_be_visible()


def test_metadata_is_shown_as_it_is_searched_for(tmp_path: Path, view: View, open_page: Open) -> None:
    """Text as it is, all else as JSON; what the page shows finds the prompt."""
    folder, _ = make_run(tmp_path, 2)
    nested = {"a": [1, {"b": None}], "c": True}
    commit_outcomes(folder, make_record(0, metadata={"meta": nested, "n": None, "s": "None"}), make_record(1))
    site = view(tmp_path)
    page = open_page(site.url("/runs/demo/prompts"))
    shown = page.locator(".metadata").all_inner_texts()
    assert shown[:3] == ['meta: {"a":[1,{"b":null}],"c":true}', "n: null", "s: None"]
    page.get_by_label("Metadata key").fill("meta")
    page.get_by_label("is", exact=True).fill(shown[0].removeprefix("meta: "))
    page.get_by_role("button", name="Find").click()
    expect(page.locator(".prompts a bdi")).to_have_text(["prompt-0"])


def test_metadata_is_searched_for_as_text_and_as_json(tmp_path: Path, view: View) -> None:
    """As JSON there is null, the empty text, and a text that looks like a number; without a value, all that have the key."""
    values: dict[str, Any] = {"null": None, "text": "null", "empty": "", "yes": True, "one": 1, "1": "1", "list": [1, "a"]}
    folder, _ = make_run(tmp_path, len(values) + 1)
    ids = [*values, "none"]
    commit_outcomes(
        folder,
        *(make_record(n, id=name, metadata={"k": values[name]} if name in values else {}) for n, name in enumerate(ids)),
    )
    site = view(tmp_path)

    def found(**asked: str) -> list[str]:
        answer: Any = site.get(f"/api/runs/demo/prompts?{urlencode(asked)}").json()
        return [prompt["id"] for prompt in answer["prompts"]]

    assert found(key="k") == found(key="k", value="") == list(values)
    assert found(key="k", value="null") == ["null", "text"]
    assert found(key="k", value='"null"') == ["text"]
    assert found(key="k", value='""') == ["empty"]
    assert found(key="k", value="true") == ["yes"]
    assert found(key="k", value="1") == ["one", "1"]
    assert found(key="k", value='"1"') == ["1"]
    assert found(key="k", value='[1,"a"]') == ["list"]


def test_many_prompts_are_paged(tmp_path: Path, view: View, open_page: Open) -> None:
    """Fifty a page, each once."""
    folder, _ = make_run(tmp_path, 120)
    commit_outcomes(folder, *(make_failure(index) for index in range(120)))
    page = open_page(view(tmp_path).url("/runs/demo/prompts"))
    found: list[str] = []
    for number in (1, 2, 3):
        expect(page.locator(".pager")).to_contain_text(f"page {number}")
        found += page.locator(".prompts a").all_inner_texts()
        if number < 3:
            page.get_by_role("link", name="next").click()
    assert page.get_by_role("link", name="next").count() == 0
    assert found == [f"prompt-{index}" for index in range(120)]
    page.get_by_role("link", name="previous").click()
    expect(page.locator(".prompts a").first).to_have_text("prompt-50")


def test_a_token_is_found_and_leads_to_its_place(site: Site, store: Path, open_page: Open) -> None:
    """The places are those of the query; a link opens the grid there, coloured by the token."""
    run = open_store(store)["first"]
    found = run.query("token", token="id:3", rank=2, tap="resid_post").rows()
    page = open_page(site.url("/runs/first"))
    page.get_by_label("Find a token").fill("id:3")
    page.get_by_label("Find a token").press("Enter")
    page.get_by_label("in the top").fill("2")
    page.get_by_role("button", name="Find").click()
    rows = page.locator("tbody tr")
    assert len(found) > 1
    expect(rows).to_have_count(len(found))
    numbers = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert [(int(row[0]), int(row[3]), int(row[4])) for row in numbers] == [
        (one["position"], one["layer"], one["rank"]) for one in found
    ]
    rows.nth(1).locator("a").click()
    page.wait_for_selector("html[data-ready]")
    chosen = page.locator("td[aria-selected]").get_attribute("aria-label") or ""
    assert chosen.startswith(f"layer {found[1]['layer']}, position {found[1]['position']}")
    assert page.locator("#of").input_value() == "3"


def test_a_token_of_each_prompt_is_found(site: Site, store: Path, open_page: Open) -> None:
    """What was tracked by a field is found in each prompt; a link leads to the place."""
    found = open_store(store)["first"].query("token", token="field:own", rank=3).rows()
    page = open_page(site.url("/runs/first/tokens?token=field:own&rank=3"))
    rows = page.locator("tbody tr")
    assert found
    expect(rows).to_have_count(len(found))
    assert "each prompt's own token" in page.get_by_role("status").first.inner_text()
    rows.first.locator("a").click()
    page.wait_for_selector("html[data-ready]")
    chosen = page.locator("td[aria-selected]").get_attribute("aria-label") or ""
    assert chosen.startswith(f"layer {found[0]['layer']}, position {found[0]['position']}")


def test_a_tracked_token_leads_to_its_place_as_any_other(site: Site, open_page: Open) -> None:
    """It is the same in every prompt: its id is told, and a link colours the grid by it."""
    page = open_page(site.url("/runs/first/tokens?token=id:1&rank=3"))
    assert page.locator(".pager").count() == 0  # there is one page
    assert page.get_by_role("status").first.inner_text().endswith("id 1")
    page.get_by_role("region", name="Places").get_by_role("link").first.click()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#of").input_value() == "1"


def test_a_token_that_is_none_is_answered_with_near_ones(site: Site, open_page: Open) -> None:
    """In the page, with the words of the command."""
    page = open_page(site.url("/runs/first/tokens?token=T1"))
    assert "no single token" in page.get_by_role("alert").inner_text()
    assert "id:1" in page.get_by_role("alert").inner_text()


def test_aggregates_are_drawn_and_told_in_numbers(site: Site, store: Path, open_page: Open) -> None:
    """Split by a key where asked."""
    page = open_page(site.url("/runs/first/aggregate"))
    assert page.evaluate("document.querySelector('figure img').naturalWidth") > 300
    assert page.get_by_text("means in nats; _10, _50 and _90 are their quantiles").count() == 1
    rows = open_store(store)["first"].query("layers").rows()
    table = page.get_by_role("region", name="By layer and tap").locator("tbody tr")
    expect(table).to_have_count(len(rows))
    assert table.first.locator("td").first.inner_text() == rows[0]["tap"]
    page.get_by_label("Split by metadata key").fill("kind")
    page.get_by_role("button", name="Show").click()
    expect(table).to_have_count(len(open_store(store)["first"].query("layers", by="kind").rows()))


def test_aggregates_lead_to_the_prompts_behind_them(site: Site, store: Path, open_page: Open) -> None:
    """Those of each value of a key, and an example of each kind of failure."""
    run = open_store(store)["first"]
    having = [text_label(record.id) for record in run.records() if record.metadata.get("kind") == "kind1"]
    page = open_page(site.url("/runs/first/aggregate?by=kind"))
    page.get_by_role("link", name="kind1", exact=True).click()
    assert having
    expect(page.locator(".prompts a bdi")).to_have_text(having)
    page.go_back()
    page.get_by_role("region", name="Failures").get_by_role("link").first.click()
    expect(page.locator("h1")).to_contain_text("failed")
    page.goto(site.url("/runs/first"))
    page.get_by_role("link", name="2 failures").click()
    expect(page.locator(".prompts .failure")).to_have_count(2)


def test_aggregates_of_some_positions(site: Site, store: Path, open_page: Open) -> None:
    """Picture and numbers are of those; where none was lensed the page says so."""
    page = open_page(site.url("/runs/first/aggregate"))
    page.get_by_label("Positions").fill("last")
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile("positions=last"))
    first = page.get_by_role("region", name="By layer and tap").locator("tbody tr").first
    (rows, everything) = (open_store(store)["first"].query("layers", **chosen).rows() for chosen in ({"positions": "last"}, {}))
    assert first.locator("td").nth(2).inner_text() == str(rows[0]["places"]) != str(everything[0]["places"])
    assert "positions=last" in str(page.locator("figure img").get_attribute("src"))
    wait_until(lambda: page.evaluate("document.querySelector('figure img').naturalWidth > 300"), "the picture is there")
    page.goto(site.url("/runs/first/aggregate?positions=500:"))
    assert page.get_by_text("None of these positions was lensed.").count() == 1
    assert site.get("/api/runs/first/aggregate?positions=last").json()["positions"] == "last"


def test_runs_are_compared_and_prompts_shown_side_by_side(site: Site, store: Path, open_page: Open) -> None:
    """Both grids are shown alike."""
    page = open_page(site.url("/runs/first"))
    page.get_by_label("Compare with").select_option("second")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("region", name="By layer and tap").locator("tbody tr").nth(1)).to_be_visible()
    assert page.get_by_text("those of second less those of first").count() == 1
    page.get_by_role("link", name="side by side").click()
    page.get_by_role("link", name="side by side with second").nth(2).click()
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".pane h2").all_inner_texts() == ["made-up · run first", "made-up · run second"]
    assert page.locator("h1").inner_text() == "prompt a/b'2\"…"
    page.get_by_label("Tap").select_option("attn_out")
    run = open_store(store)
    for pane, name in enumerate(("first", "second")):
        lens = run[name]["a/b'2\"…"].taps["attn_out"]
        texts = [row.locator("td").all_inner_texts() for row in page.locator(".pane").nth(pane).locator(".grid tbody tr").all()]
        assert texts == [[f"·t{token}" for token in row] for row in lens.ids[::-1, :, 0]]
    page.locator(".pane").nth(0).locator("td[data-layer='1']").first.click()
    assert page.locator("td[aria-selected]").count() == 2
    api = page.get_by_role("link", name="JSON").get_attribute("href") or ""
    both = site.get(api).json()
    assert {name: outcome["id"] for name, outcome in both.items()} == dict.fromkeys(("first", "second"), "a/b'2\"…")  # type: ignore[attr-defined]


def test_neighbouring_prompts_are_a_step_away(site: Site, open_page: Open) -> None:
    """In corpus order; the first has none before it."""
    page = open_page(site.url("/runs/first/prompt?id=a/b'0%22%E2%80%A6"))
    page.wait_for_selector("html[data-ready]")
    assert page.get_by_role("link", name="previous prompt").count() == 0
    page.get_by_role("link", name="next prompt").click()
    page.wait_for_selector("html[data-ready]")
    assert "a/b'1\"…" in page.title()


def test_progress_is_live(tmp_path: Path, view: View, open_page: Open) -> None:
    """The page follows what is committed while it is open, and ends whole."""
    folder, _ = make_run(tmp_path, 3)
    page = open_page(view(tmp_path).url("/runs/demo"))
    assert page.get_by_role("status").inner_text().startswith("0 records and 0 failures")
    commit_outcomes(folder, make_record(0))
    expect(page.locator("#records")).to_have_text("1 record")
    commit_outcomes(folder, make_record(1), make_failure(2))
    page.wait_for_selector("section[data-complete]")
    assert page.get_by_role("status").inner_text().startswith("2 records and 1 failure of 3 prompts, 8 tokens")


def test_progress_goes_on_after_an_answer_that_failed(tmp_path: Path, view: View, browser: Browser) -> None:
    """As while a run is moved aside, or the site is started again."""
    folder, _ = make_run(tmp_path, 2)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(view(tmp_path).url("/runs/demo"))
        with page.expect_response(lambda answer: answer.status == 404):
            folder.root.rename(tmp_path / "away")
        (tmp_path / "away").rename(folder.root)
        commit_outcomes(folder, make_record(0))
        expect(page.locator("#records")).to_have_text("1 record")


def test_a_fresh_run_of_the_same_name_is_seen(tmp_path: Path, view: View) -> None:
    """``raylens run --fresh`` renames the old one under the site's feet."""
    folder, _ = make_run(tmp_path, 2)
    commit_outcomes(folder, make_record(0), make_record(1))
    site = view(tmp_path)
    assert site.get("/api/runs/demo/progress").json()["records"] == 2  # type: ignore[index]
    folder.move_aside()
    folder, _ = make_run(tmp_path, 2)
    assert site.get("/api/runs/demo/progress").json()["records"] == 0  # type: ignore[index]
    commit_outcomes(folder, make_record(1))
    assert site.get("/api/runs/demo/progress").json()["records"] == 1  # type: ignore[index]


@pytest.mark.parametrize("number", range(0, len(TEXTS), 3))
def test_text_stays_text_on_every_page(tmp_path: Path, view: View, open_page: Open, number: int) -> None:
    """Ids, texts, metadata, model names and messages that would be markup, scripts or addresses."""
    write_hostile_run(tmp_path)
    site = view(tmp_path)
    page = open_page(site.url("/"))
    text = quote(TEXTS[number])
    paths = ["/runs/demo", "/runs/demo/prompts", f"/runs/demo/prompts?text={text}&key={text}&value={text}"]
    paths += [f"/runs/demo/prompt?id={text}", "/runs/demo/prompt?id=%3Cb%3Efailed%3C/b%3E", f"/runs/demo/prompt?id=x{text}"]
    paths += [f"/runs/demo/tokens?token={text}", f"/runs/demo/aggregate?by={text}", f"/runs/{quote(text, safe='')}"]
    for path in paths:
        status = site.get(path).status
        if status in {404, 400}:
            continue  # a browser logs these as errors
        page.goto(site.url(path))
        assert page.locator("iframe, object, embed, svg[onload], [onerror]").count() == 0
        assert not any(character in page.locator("body").inner_text() for character in "\u202e\u2066\u200f\x1b\x7f")
        assert site.get(f"/api{path}").status == (400 if page.get_by_role("alert").count() and "prompt?" not in path else 200)
    for path in paths:
        assert b"<script>alert" not in site.get(path).body


@pytest.mark.parametrize(("width", "colours"), [(1200, "light"), (390, "dark")])
def test_pages_are_accessible(site: Site, open_page: Open, width: int, colours: str) -> None:
    """By axe-core's rules; nor does a page itself scroll sideways."""
    paths = ["/", "/runs/first", "/runs/first/prompts", "/runs/first/tokens?token=id:3", "/runs/first/aggregate"]
    paths += ["/compare?one=first&other=second", "/runs/first/prompt?id=a/b'2%22%E2%80%A6"]
    for path in paths:
        page = open_page(site.url(path), width=width, colours=colours)
        assert violations(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        page.context.close()


def test_a_missing_page_says_so(site: Site) -> None:
    """As a page, and as JSON."""
    for path, status in (
        ("/runs/nope", 404),
        (f"/runs/{'a' * 300}", 404),
        ("/runs/%2e%2e", 404),
        ("/nope", 404),
        ("/runs/first/prompt?id=nope", 404),
        ("/compare.svg?one=first", 404),
    ):
        assert site.get(path).status == status
        answer = site.get(f"/api{path}")
        assert answer.status == status
        assert answer.json()["error"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("prompts?page=x", "page=x: give a number from 1"),
        ("prompts?page=2", "page=2: the last page is 1"),
        ("prompts?outcome=x", "outcome=x: choose from all"),
        ("prompts?value=x", "value=x: of which metadata key?"),
        ("prompts?key=kin", "metadata key kin: no prompt of run 'first' has it; their metadata has "),
        ("tokens?token=id:1&rank=0", "rank=0: give a number from 1"),
        ("tokens?token=id:1&layers=x", "layers 'x': 'x' is not a layer"),
    ],
)
def test_a_wrong_question_is_answered_in_the_page(site: Site, query: str, problem: str) -> None:
    """And by status 400 as JSON."""
    assert b'role="alert"' in site.get(f"/runs/first/{query}").body
    answer = site.get(f"/api/runs/first/{query}")
    assert (answer.status, problem in answer.json()["error"]) == (400, True), answer.body  # type: ignore[index]


def test_damage_is_named(tmp_path: Path, view: View) -> None:
    """A run that cannot be read is in the list with its error, and the others still work."""
    write_run(tmp_path, name="good")
    folder, _ = make_run(tmp_path, 2, name="bad")
    folder.manifest.write_text("{")
    site = view(tmp_path)
    lines = {line["run"]: line["error"] for line in site.get("/api/").json()["runs"]}  # type: ignore[index]
    assert lines["good"] is None
    assert "run.json" in lines["bad"]
    assert site.get("/runs/bad").status == 500
    assert site.get("/runs/good").status == 200


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "localhost.example.com:80", "[::2]", "", "169.254.1.1"])
def test_another_host_is_refused(site: Site, host: str) -> None:
    """A page elsewhere that points its own name here gets nothing."""
    answer = site.get("/", Host=host)
    assert answer.status in {400, 421}
    assert b"first" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:9000"])
def test_a_forwarded_port_is_answered(site: Site, host: str) -> None:
    """As by ssh -L, whatever the port."""
    assert site.get("/", Host=host).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_written(site: Site, method: str) -> None:
    """Only GET and HEAD."""
    assert site.get("/runs/first", method=method).status == 405


def test_files_outside_are_not_served(site: Site) -> None:
    """Nor are templates or the store's own files."""
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/%2e%2e%2ftemplates%2fbase.html",
        "/runs/..%2f..%2fetc",
        "/runs/first/run.json",
    ):
        assert site.get(path).status == 404


def test_answers_carry_security_headers(site: Site) -> None:
    """A policy that lets nothing else in; a record's page has its own, by hash."""
    for path in ("/", "/api/", "/nope", "/static/site.css", "/runs/first/aggregate.svg"):
        headers = site.get(path).headers
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
    record = site.get("/runs/first/prompt?id=a/b'2%22%E2%80%A6").headers["Content-Security-Policy"]
    assert record.startswith(policy())
    assert "unsafe" not in record + POLICY


def test_other_addresses_need_the_token(store: Path, view: View, open_page: Open) -> None:
    """Once in the address, then as a cookie; without it nothing is told."""
    site = view(store, "--host", "0.0.0.0")
    token = urlsplit(site.address).query.removeprefix("token=")
    assert len(token) >= 32
    for answer in (
        site.get("/"),
        site.get("/?token=x"),
        site.get("/api/"),
        site.get("/static/site.css"),
        site.get("/", Cookie="; ".join(f"{name}=" for name in ("raylens", "raylens-token"))),
    ):
        assert answer.status == 403
        assert b"first" not in answer.body
    entered = site.get(f"/runs/first?token={token}&x=1")
    assert entered.status == 303
    assert entered.headers["Location"] == "/runs/first?x=1"
    # as it was asked for, and on no other host
    assert site.get(f"/runs/a%23b%3F?x=%23&token={token}").headers["Location"] == "/runs/a%23b%3F?x=%23"
    assert site.get(f"//elsewhere.example/x?token={token}&x=%ff").headers["Location"].startswith("/elsewhere.example/x?x=")
    assert "HttpOnly" in entered.headers["Set-Cookie"]
    assert "samesite=lax" in entered.headers["Set-Cookie"].lower()
    page = open_page(site.address.replace("0.0.0.0", "127.0.0.1"))
    assert "token" not in page.url
    page.get_by_role("link", name="first").click()
    assert page.locator("h1").inner_text() == "run first"
    # cookies know no port: two sites of a machine must not take each other's
    other = view(store, "--host", "0.0.0.0")
    cookies = [one.get(f"/?{urlsplit(one.address).query}").headers["Set-Cookie"] for one in (site, other)]
    assert len({cookie.partition("=")[0] for cookie in cookies}) == 2


def test_a_port_in_use_and_a_missing_store_are_refused(site: Site, store: Path, tmp_path: Path) -> None:
    """With what to do."""
    port = str(urlsplit(site.address).port)
    taken = raylens_command("view", str(store), "--port", port)
    assert taken.returncode == 2
    assert f"--port {port}" in taken.stderr
    missing = raylens_command("view", str(tmp_path / "none"))
    assert missing.returncode == 6
    assert "no such store" in missing.stderr


def test_all_taps_can_be_asked_for(site: Site) -> None:
    """By the names that the page offers."""
    for tap in (*TAPS, "all"):
        assert site.get(f"/runs/first/tokens?token=id:3&tap={tap}").status == 200


def test_a_head_is_asked_for_and_leads_to_its_prompt(tmp_path: Path, view: View, open_page: Open) -> None:
    """Its page shows that head, at the layer where the token is."""
    write_run(tmp_path, taps=("head_0", "resid_post"), stats=False)
    page = open_page(view(tmp_path).url("/runs/demo/tokens?token=id:3&rank=3&tap=head_0"))
    assert page.get_by_label("of tap").input_value() == "head_0"
    link = page.get_by_role("region", name="Places").get_by_role("link").first
    layer = re.search(r"layer=(\d+)", link.get_attribute("href") or "")
    assert layer is not None
    link.click()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#tap").input_value() == "head_0"
    assert page.locator(".detail h3").inner_text().startswith(f"layer {layer[1]} head_0, position ")


def test_side_by_side_shows_what_both_have_on_one_scale(tmp_path: Path, view: View, open_page: Open) -> None:
    """The last tap of both; ranks end where the record with the fewest tokens ends."""
    write_run(tmp_path, name="narrow", k=2, stats=False, taps=("attn_out", "resid_mid"))
    write_run(tmp_path, name="wide", k=5, stats=False)
    prompt = quote("a/b'1\"…")
    page = open_page(view(tmp_path).url(f"/compare/prompt?one=narrow&other=wide&id={prompt}"))
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#tap").input_value() == "resid_mid"
    assert page.locator("td[aria-selected]").count() == 2
    assert page.locator("#ticks span").last.inner_text() == ">2"
    colours = page.locator(".pane td[data-layer]").evaluate_all("cells => cells.map(cell => cell.style.backgroundColor)")
    assert len(set(colours)) <= 3


def test_a_key_of_many_values_is_told_and_tabled(tmp_path: Path, view: View, open_page: Open) -> None:
    """There is no picture of it, and the page says why."""
    write_run(tmp_path, prompts=9, stats=False)
    folder, _ = make_run(tmp_path, 9, name="many")
    commit_outcomes(folder, *(make_record(index, metadata={"q": f"v{index}"}) for index in range(9)))
    page = open_page(view(tmp_path).url("/runs/many/aggregate?by=q"))
    assert page.get_by_text("--by q: 9 values; at most 8 are drawn; choose a key with fewer").count() == 1
    assert page.locator("figure img").count() == 0
    assert page.get_by_role("region", name="By layer and tap").locator("tbody tr").count() > 0


def test_a_failure_leads_on_to_its_neighbours(site: Site, open_page: Open) -> None:
    """As a record does."""
    page = open_page(site.url("/runs/first/prompt?id=x/y"))
    assert page.get_by_role("link", name="first").count() == 1
    page.get_by_role("link", name="previous prompt").click()
    page.wait_for_selector("html[data-ready]")
    assert "a/b'6\"…" in page.title()


def test_a_repair_is_seen(tmp_path: Path, view: View) -> None:
    """Counts are of what is there now, also where commits that were read have been replaced."""
    folder, _ = make_run(tmp_path, 2)
    commit_outcomes(folder, make_record(0), make_record(1))
    site = view(tmp_path)
    assert site.get("/api/runs/demo/progress").json()["complete"] is True  # type: ignore[index]
    (segment,) = folder.records.iterdir()
    segment.write_bytes(segment.read_bytes()[:-1] + b"x")
    assert list(repair(folder)) != []
    assert site.get("/api/runs/demo/progress").json()["records"] == 1  # type: ignore[index]
    commit_outcomes(folder, make_record(1))
    assert site.get("/api/runs/demo/progress").json()["complete"] is True  # type: ignore[index]
