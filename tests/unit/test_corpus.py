"""What a corpus reads: formats, ids, fingerprints, and what it may use of memory and imports."""

import csv
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import raylens
from raylens.scheduler.corpus import Corpus, CorpusSettings, Fingerprint, fingerprint
from raylens.scheduler.corpus.duplicates import IdHashes
from raylens.scheduler.corpus.fingerprint import MARK_PROMPTS
from raylens.storage.errors import InputError
from raylens.storage.record import Prompt

Row = dict[str, Any]

ROWS: list[Row] = [
    {"id": "a/b.c", "text": "The capital of France is", "topic": "geography"},
    {"id": "ü", "text": 'two\nlines, "quoted"\r\nand a comma', "topic": ""},
    {"id": "3", "text": "", "topic": "empty"},
]


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))


def write_csv(path: Path, rows: list[Row], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


def write_tsv(path: Path, rows: list[Row]) -> None:
    write_csv(path, rows, "\t")


def write_parquet(path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "jsonl": write_jsonl,
    "ndjson": write_jsonl,
    "json": write_jsonl,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
}


def two_frames(data: bytes) -> bytes:
    """Two zstd frames with a skippable one between, as parallel compressors write."""
    compress = zstandard.ZstdCompressor().compress
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    return compress(data[: len(data) // 2]) + skippable + compress(data[len(data) // 2 :])


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": two_frames}


def corpus(*sources: Path | str, **settings: Any) -> Corpus:
    return Corpus(CorpusSettings(sources=tuple(map(str, sources)), **settings))


def texts(*sources: Path | str, **settings: Any) -> list[str | None]:
    return [prompt.text for prompt in corpus(*sources, **settings).prompts()]


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("extension", WRITERS)
def test_every_format_and_compression_gives_the_same_prompts(tmp_path: Path, extension: str, compression: str) -> None:
    WRITERS[extension](tmp_path / "plain", ROWS)
    path = tmp_path / f"corpus.{extension.upper()}{compression}"
    path.write_bytes(COMPRESSORS[compression]((tmp_path / "plain").read_bytes()))

    read = corpus(path)

    expected = [Prompt(i, row["id"], row["text"], metadata={"topic": row["topic"]}) for i, row in enumerate(ROWS)]
    assert list(read.prompts()) == expected
    assert list(read.prompts()) == expected, "a second pass starts anew"
    assert read.scan() == Corpus.from_rows(ROWS).scan()


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_text_is_a_line_a_prompt_unless_blank_lines_separate_it(tmp_path: Path, compression: str) -> None:
    lines, paragraphs = tmp_path / f"lines.txt{compression}", tmp_path / f"paragraphs.md{compression}"
    lines.write_bytes(COMPRESSORS[compression](b"\xef\xbb\xbf\n  one \r\ntwo\rstill two\nthr\xc3\xa9e\n\n  \n"))
    paragraphs.write_bytes(COMPRESSORS[compression](b"one\n  more \r\n \t\r\n\ntwo\x00"))

    assert texts(lines) == ["  one ", "two\rstill two", "thrée"]
    assert texts(paragraphs) == ["one\n  more ", "two\x00"]
    assert texts(lines, format="paragraphs") == ["  one \ntwo\rstill two\nthrée"]
    assert texts(paragraphs, format="lines") == ["one", "  more ", "two\x00"]
    assert texts(paragraphs, format="txt") == texts(paragraphs)


def test_an_unnamed_format_wins_over_the_extension_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "corpus.log"
    write_jsonl(path, [{"text": "x"}])
    assert texts(path) == ['{"text": "x"}']
    assert texts(path, format="jsonl") == ["x"]


def test_sources_and_texts_are_read_in_order_and_counted_through(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"text": "first", "id": "named"}, {"text": "second"}])
    (tmp_path / "a.txt").write_text("third\n")
    read = corpus(tmp_path / "b.jsonl", tmp_path / "a.txt", texts=("fourth\n",))
    assert [(p.index, p.id, p.text) for p in read.prompts()] == [
        (0, "named", "first"),
        (1, "1", "second"),
        (2, "2", "third"),
        (3, "3", "fourth\n"),
    ]


def test_the_prompt_and_id_may_have_any_name_and_the_rest_is_metadata(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    write_jsonl(
        path, [{"n": 12345678901234567890123, "body": "x", "id": 5, "text": "other", "messages": None, "deep": {"a": [1, None]}}]
    )
    (prompt,) = corpus(path, column="body", id_column="n").prompts()
    assert (prompt.id, prompt.text) == ("12345678901234567890123", "x")
    assert prompt.metadata == {"id": 5, "text": "other", "messages": None, "deep": {"a": [1, None]}}


@pytest.mark.parametrize("key", ["text", "prompt", "content", "question", "input"])
def test_without_a_column_the_usual_keys_are_tried(key: str) -> None:
    (prompt,) = Corpus.from_rows([{"other": "no", key: "yes"}]).prompts()
    assert (prompt.text, prompt.metadata) == ("yes", {"other": "no"})


def test_the_first_of_the_usual_keys_wins() -> None:
    (prompt,) = Corpus.from_rows([{"input": "no", "prompt": "yes", "question": "no"}]).prompts()
    assert (prompt.text, prompt.metadata) == ("yes", {"input": "no", "question": "no"})


def test_messages_and_token_ids() -> None:
    chat = [{"role": "user", "content": "hi", "name": "kept"}]
    first, second, third = Corpus.from_rows(
        [{"messages": chat}, {"token_ids": (0, 1, 2), "id": 7}, {"text": "both", "messages": chat}], column="messages"
    ).prompts()
    assert (first.text, first.messages, first.token_ids) == (None, chat, None)
    assert (second.text, second.messages, second.token_ids, second.id) == (None, None, [0, 1, 2], "7")
    assert (third.messages, third.metadata) == (chat, {"text": "both"})


def test_python_and_parquet_values_become_json_values(tmp_path: Path) -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    row = {
        "text": "x",
        "when": moment,
        "day": date(2024, 1, 2),
        "price": Decimal("1.50"),
        "n": 3,
        "f": 0.5,
        "tags": ["a"],
        "none": None,
    }
    write_parquet(tmp_path / "c.parquet", [row])
    expected = {
        "when": "2024-01-02T03:04:05+00:00",
        "day": "2024-01-02",
        "price": "1.50",
        "n": 3,
        "f": 0.5,
        "tags": ["a"],
        "none": None,
    }
    for read in (corpus(tmp_path / "c.parquet"), Corpus.from_rows([row])):
        assert [prompt.metadata for prompt in read.prompts()] == [expected]
        assert read.scan().count == 1


def test_numbers_and_arrays_of_numpy_and_torch_become_json_values() -> None:
    """What a tokenizer or a data set gives is a prompt or metadata as it is."""
    numbers = {
        "n": np.int64(3),
        "f": np.float32(0.5),
        "yes": np.True_,
        "all": [np.int8(1), 2],
        "table": np.eye(2),
        "t": torch.tensor(4),
    }
    first, second = Corpus.from_rows(
        [{"token_ids": np.array([1, 2]), "id": np.int64(7), **numbers}, {"token_ids": torch.tensor([3]), "id": "b"}]
    ).prompts()
    assert (first.token_ids, first.id, second.token_ids) == ([1, 2], "7", [3])
    assert first.metadata == {"n": 3, "f": 0.5, "yes": True, "all": [1, 2], "table": [[1.0, 0.0], [0.0, 1.0]], "t": 4}
    assert [type(value) for value in first.metadata.values()] == [int, float, bool, list, list, int]
    Fingerprint().update(first)


def test_subclasses_of_plain_types_are_made_plain() -> None:
    class Colour(StrEnum):
        RED = "red"

    first, second = Corpus.from_rows([{"text": Colour.RED, "id": Colour.RED}, Colour.RED]).prompts()
    assert [type(value) for value in (first.text, first.id, second.text)] == [str, str, str]
    Fingerprint().update(first)


def test_rows_are_left_as_they_are_and_an_iterator_can_be_read_twice() -> None:
    rows = [{"id": "x", "text": "y", "z": 1}]
    read = Corpus.from_rows(iter(rows))
    assert list(read.prompts()) == list(read.prompts()) == [Prompt(0, "x", "y", metadata={"z": 1})]
    assert rows == [{"id": "x", "text": "y", "z": 1}]


def test_a_limit_stops_before_the_next_row_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "good"}\n{"text": "good"}\nbad\n')
    assert corpus(path, limit=2).scan().count == 2
    assert Corpus.from_rows(["a", "b"], limit=9).scan().count == 2


def test_a_field_that_no_prompt_has() -> None:
    """What is asked of prompts' own fields is refused before a model loads, if no prompt has them; one is enough."""
    rows = [{"text": "a"}, {"text": "b", "answer": " c"}]
    assert Corpus.from_rows(rows).scan(fields=["answer"]).count == 2
    with pytest.raises(InputError, match="no prompt has the field 'anwser' besides its text; correct --track field:anwser"):
        Corpus.from_rows(rows).scan(fields=["answer", "anwser"])


def test_progress_ends_with_the_count() -> None:
    seen: list[int] = []
    Corpus.from_rows(["x"] * 20_000).scan(seen.append)
    assert seen == [8192, 16384, 20_000]


@pytest.mark.parametrize("place", [0, MARK_PROMPTS - 1, MARK_PROMPTS, 2 * MARK_PROMPTS + 9])
@pytest.mark.parametrize("change", ["edit", "drop", "add"])
def test_a_corpus_that_changes_gives_nothing_of_the_change(place: int, change: str) -> None:
    """Read again, it ends with an error, and before that come only prompts as they were scanned."""
    rows = [f"row {number}" for number in range(2 * MARK_PROMPTS + 10)]
    read = Corpus.from_rows(rows)
    summary, before = read.scan(), list(read.prompts())
    assert list(read.unchanged(summary)) == before
    {
        "edit": lambda: rows.__setitem__(place, "other"),
        "drop": lambda: rows.pop(place),
        "add": lambda: rows.insert(place, "more"),
    }[change]()
    found: list[Prompt] = []
    with pytest.raises(InputError, match="the corpus changed while it was read; run again when nothing writes to it"):
        found.extend(read.unchanged(summary))
    assert found == before[: place // MARK_PROMPTS * MARK_PROMPTS]


def test_few_large_prompts_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is known that they are as they were: so many bytes, not so many prompts."""
    monkeypatch.setattr(fingerprint, "MARK_BYTES", 1000)
    read = Corpus.from_rows(["x" * 600] * 7)
    coming = read.unchanged(read.scan())
    assert [prompt.index for prompt in coming] == list(range(7))
    assert len(read.scan().marks) == 3 * fingerprint.MARK_SIZE


def test_the_fingerprint_depends_on_content_and_order_alone() -> None:
    def digest(rows: list[Any]) -> str:
        summary = Corpus.from_rows(rows).scan()
        running = Fingerprint()
        assert summary.bytes == sum(running.update(prompt) for prompt in Corpus.from_rows(rows).prompts())
        assert summary.fingerprint == running.hexdigest()
        return summary.fingerprint

    base = digest([{"text": "a", "m": {"x": 1, "y": 2}}, "b"])
    assert base == digest([{"m": {"y": 2, "x": 1}, "text": "a", "id": 0}, {"prompt": "b"}])
    others = [
        digest(["b", {"text": "a", "m": {"x": 1, "y": 2}}]),
        digest([{"text": "a", "m": {"x": 1, "y": 3}}, "b"]),
        digest([{"text": "a", "m": {"x": 1, "y": 2}, "id": "other"}, "b"]),
        digest([{"text": "a", "m": {"x": 1, "y": 2}}]),
        digest([{"text": "ab", "m": {"x": 1, "y": 2}}, ""]),
    ]
    assert len({base, *others}) == 6
    # The run id hashes this: a new form would make stored runs look like others.
    assert digest(["a"]) == "a0a485a8d0d549e1f9723c86e14211b36dac36a4c3415a9a7e6269955b4588a2"


def test_its_name_says_where_it_is_from() -> None:
    assert Corpus(CorpusSettings(sources=("a.txt",))).name == "a.txt"
    assert Corpus(CorpusSettings(sources=("a", "b", "c", "d"), texts=("one", "other"))).name == "a, b, c and 2 more"
    assert Corpus(CorpusSettings(texts=("one",))).name == "--text"
    assert Corpus.from_rows(["one"]).name == "rows"


@given(st.lists(st.text(), min_size=1))
def test_any_texts_survive_jsonl(tmp_path_factory: pytest.TempPathFactory, written: list[str]) -> None:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    write_jsonl(path, [{"text": text} for text in written])
    assert texts(path) == written


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_the_same_rows_have_one_fingerprint_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"id": f"row {number}", "text": text, "note": note} for number, (text, note) in enumerate(pairs)]
    summaries = set()
    for extension, write in WRITERS.items():
        write(folder / f"c.{extension}", rows)
        summaries.add(corpus(folder / f"c.{extension}").scan())
    assert summaries == {Corpus.from_rows(rows).scan()}


def test_hashes_that_come_twice_are_suspects_in_sets_of_bounded_size() -> None:
    hashes = IdHashes()
    assert list(hashes.suspects()) == []
    for value in [*range(100_000), -5, *range(99_999, -1, -1), 7]:
        hashes.add(value)
    sets = list(hashes.suspects())
    assert [len(suspects) for suspects in sets] == [65_536, 100_000 - 65_536]
    assert frozenset().union(*sets) == frozenset(range(100_000))


def test_ids_that_only_share_a_hash_are_no_duplicates() -> None:
    read = Corpus.from_rows([{"id": "a", "text": "x"}, {"id": "b", "text": "x"}])
    read._refuse_duplicates(frozenset({hash("a"), hash("b")}))
    with pytest.raises(raylens.RaylensError, match="duplicate id 'a'"):
        Corpus.from_rows([{"id": "a", "text": "x"}] * 2)._refuse_duplicates(frozenset({hash("a")}))


def test_a_scan_keeps_eight_bytes_a_prompt(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"id": "row {number}", "text": "some text of a prompt"}}\n' for number in range(count)))
        tracemalloc.start()
        corpus(path).scan()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(10)  # caches
    # The array grows by an eighth, and finding equal neighbours takes a byte each.
    assert peak(60_000) - peak(10_000) < 50_000 * 12


def test_importing_it_brings_none_of_the_heavy_libraries() -> None:
    code = "import sys, raylens.scheduler.corpus; print({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules))"
    root = str(Path(raylens.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
