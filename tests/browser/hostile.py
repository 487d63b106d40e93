"""A run whose ids, texts, metadata and tokens are what pages must only ever show as text."""

import dataclasses
from pathlib import Path

from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.store import open_store
from raylens.storage.vocabulary import write_vocabulary
from tests.builders import VOCABULARY_SIZE, commit_outcomes, make_failure, make_record, make_run
from tests.queried import with_stats

TEXTS = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(2)>",
    "\"><svg onload='alert(3)'>",
    "javascript:alert(4)",
    "{{7*7}} {% raw %}",
    "]]>&lt;b&gt;&amp;",
    "\u202eabc\u2066def\u200f",
    "\u2028line\u2029",
    "\x00\x1b[31m\x7f",
    "$$ \\frac{1}{2}",
    "../../etc/passwd?x=1#y",
    "日本語 العربية 🎉 e\u0301",
    "style=\"background:url('http://example.invalid/x')\"",
    " ",
    "",
)


def write_hostile_run(store: Path) -> Run:
    """A record for each text, under its id, with its metadata and of such tokens; and a failure."""
    sources = {"model": TEXTS[0], "label": TEXTS[2], "revision": "", "corpus": TEXTS[3]}
    folder, _ = make_run(store, len(TEXTS) + 1, sources=sources)
    tokens = [
        f"{TEXTS[number % len(TEXTS)]}{number}".encode() if number % 3 else bytes([0xE0, 1 + number % 99])
        for number in range(VOCABULARY_SIZE)
    ]
    write_vocabulary(folder.vocabulary, [*tokens[:-1], None])
    records = [_record(index, text) for index, text in enumerate(TEXTS)]
    commit_outcomes(folder, *records, make_failure(len(TEXTS), id="<b>failed</b>", message=TEXTS[0], kind="model"))
    return open_store(store)["demo"]


def _record(index: int, text: str) -> Record:
    record = make_record(index, id=text, text=text, tokens=6, layers=(0, 1, 2), metadata={text: text, "topic": text}, tracked=2)
    return with_stats(dataclasses.replace(record, tokens=[text] * len(record.tokens)), index)
