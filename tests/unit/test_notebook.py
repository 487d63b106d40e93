"""What a notebook shows: small tables in which text of a corpus is only ever text."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.labels import text_label
from raylens.storage.notebook import MAX_LAYERS, MAX_POSITIONS, MAX_TEXT
from raylens.storage.store import Store
from raylens.storage.vocabulary import write_vocabulary
from tests.builders import commit_outcomes, make_failure, make_record, make_run, make_vocabulary

HOSTILE = "</td><script>alert(1)</script><img src=x onerror='alert(2)'>\" style=\"x\u202egnirts\x00\x1b[31m&lt;"
TAGS = {"table", "caption", "tr", "th", "td", "bdi"}


class Page(HTMLParser):
    """Every tag, attribute and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def safe(html: str) -> Page:
    """The page, which holds no tag, attribute or character that a text could have brought."""
    page = Page(html)
    assert set(page.tags) <= TAGS
    assert {name for name, _ in page.attributes} <= {"style", "title"}
    assert all(character.isprintable() for text in page.texts for character in text)
    return page


def test_a_record_shows_its_best_tokens(tmp_path: Path) -> None:
    """Last layer first, input tokens below; labels from the run's vocabulary."""
    folder, _ = make_run(tmp_path)
    record = make_record(0, layers=(0, 3))
    commit_outcomes(folder, record)
    page = safe(Store(tmp_path)["demo"]["prompt-0"]._repr_html_())
    best = record.taps["resid_post"].ids[:, :, 0].tolist()
    positions = [str(position) for position in record.positions]
    rows = [["layer 3", *(f"·t{token}" for token in best[1])], ["layer 0", *(f"·t{token}" for token in best[0])]]
    read = [f"·t{token}" for token in record.token_ids]
    assert page.texts[1:] == ["position", *positions, *rows[0], *rows[1], "token", *read]
    probabilities = np.exp(record.taps["resid_post"].logprobs[1, :, 0].astype(np.float32))
    titles = [value for name, value in page.attributes if name == "title"]
    assert titles[:4] == [f"{probability:.1%}" for probability in probabilities]


def test_a_large_record_is_cut(tmp_path: Path) -> None:
    """The last positions, and layers evenly spaced down from the last; a record by itself shows ids."""
    record = make_record(0, tokens=60, layers=tuple(range(80)), taps=("mlp_out",))
    page = safe(record._repr_html_())
    shown = f"{MAX_POSITIONS} of 60 positions, {MAX_LAYERS} of 80 layers"
    assert page.texts[0] == f"prompt prompt-0: top token of mlp_out, {shown}; the bluer, the more probable"
    assert page.texts[1:3] == ["position", "48"]
    assert page.texts[2 + MAX_POSITIONS : 4 + MAX_POSITIONS] == ["layer 79", f"‹id {record.taps['mlp_out'].ids[79, 48, 0]}›"]


def test_a_token_has_its_label_read_or_predicted(tmp_path: Path) -> None:
    """Bytes that are no text too, which the record's own tokens have as U+FFFD."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0))
    write_vocabulary(folder.vocabulary, [b"\xe0"] * len(make_vocabulary()))
    assert safe(Store(tmp_path)["demo"]["prompt-0"]._repr_html_()).texts[-4:] == ["‹E0›"] * 4


@given(text=st.text(max_size=80) | st.just(HOSTILE))
def test_text_of_a_record_stays_text(text: str) -> None:
    """Ids, input tokens and vocabulary of any text."""
    vocabulary = [(text + str(number)).encode(errors="surrogatepass") for number in range(len(make_vocabulary()))]
    record = make_record(0, id=text)
    record.tokens[:] = [text] * len(record.tokens)
    html = type(record)(**{**{name: getattr(record, name) for name in record.__slots__}, "vocabulary": vocabulary})._repr_html_()
    assert safe(html).texts[0].startswith(f"prompt {text_label(text)}"[: MAX_TEXT // 2])


def test_a_run_and_a_store_show_a_summary(tmp_path: Path) -> None:
    """Counts, model and settings; hostile text of a manifest is text."""
    sources = {"model": HOSTILE, "corpus": "c.jsonl"}
    folder, _ = make_run(tmp_path, sources=sources)
    commit_outcomes(folder, make_record(0), make_failure(1, kind="model"))
    store = Store(tmp_path)
    texts = safe(store["demo"]._repr_html_()).texts
    assert text_label(HOSTILE)[:50] in texts[texts.index("model") + 1]
    assert texts[texts.index("records") + 1] == "1"
    assert texts[texts.index("failures") + 1] == "1 model"
    assert texts[texts.index("prompts") + 1] == "4, unfinished"
    row = safe(store._repr_html_()).texts
    assert row[row.index("demo") : row.index("demo") + 5] == ["demo", "1", "1", "4", "4"]


def test_a_run_shows_how_it_was_made(tmp_path: Path) -> None:
    """What was generated and edited too, where that is so."""
    make_run(tmp_path, name="plain")
    edited = {"lens": {"top_k": 3}, "generation": {"tokens": 8, "top_k": None}, "intervention": {"1": "scale 0"}}
    make_run(tmp_path, name="edited", identity=edited)
    plain, more = (safe(Store(tmp_path)[name]._repr_html_()).texts for name in ("plain", "edited"))
    assert more[more.index("lens") :] == ["lens", "top_k 3", "generation", "tokens 8", "intervention", "1 scale 0"]
    assert not {"generation", "intervention"} & set(plain)
    rows = safe(Store(tmp_path)._repr_html_()).texts
    assert [rows[rows.index(name) + 5] for name in ("plain", "edited")] == ["demo", "demo, edited"]


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    """Its row says what is wrong."""
    make_run(tmp_path, name="good")
    folder, _ = make_run(tmp_path, name="bad")
    folder.manifest.write_text("{")
    texts = safe(Store(tmp_path)._repr_html_()).texts
    assert {"good", "bad"} <= set(texts)
    assert any("run.json" in text for text in texts)


@pytest.mark.parametrize("count", [0, 60])
def test_a_store_of_no_run_or_many(tmp_path: Path, count: int) -> None:
    """At most fifty rows, and the number of all."""
    for number in range(count):
        make_run(tmp_path, name=f"run-{number}")
    page = safe(Store(tmp_path)._repr_html_())
    assert f": {count} runs" in page.texts[0]
    assert page.tags.count("tr") == 1 + min(count, 50)
