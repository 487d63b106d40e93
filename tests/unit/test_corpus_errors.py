"""What a corpus refuses, and with which words: every message has the place, the problem and the remedy in one line."""

import datetime
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raylens
from raylens.scheduler.corpus import Corpus, CorpusSettings
from raylens.storage.errors import InputError, UsageError


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        Corpus(CorpusSettings(sources=(str(path),), **settings)).scan()
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message.replace(f"{Path(path).parent}/", "")


def row_refusal(row: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(Corpus.from_rows(["good", row]).prompts())
    return str(caught.value)


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a" "b"}', "c.jsonl:3: not valid JSON (unexpected character...column 14); write one JSON"),
        (b'{"text": "a"', "c.jsonl:3: not valid JSON ("),
        (b'{"text": "a", "n": NaN}', "c.jsonl:3: not valid JSON ("),
        (b'{"text": "a", "n": 1e999}', "c.jsonl:3: not valid JSON (number is infinity"),
        (
            b'{"text": "a", "n": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
            "c.jsonl:3: not valid JSON (...depth...); write one JSON",
        ),
        (b'"x"', "c.jsonl:3: not a JSON object; write one object per line"),
        (b'[{"text": "x"}]', "c.jsonl:3: not a JSON object; write one object per line"),
        (b'{"text": "a\xff"}', "c.jsonl:3: not valid UTF-8 (byte 0xff at offset 11 of the line); save the file as UTF-8"),
        (b'{"a\xff": 1, "text": "a"}', "c.jsonl:3: not valid UTF-8 (byte 0xff at offset 3 of the line)"),
        (
            b'{"text": "\\ud800"}',
            "c.jsonl:3: half of a \\ud800-\\udfff escape pair (no low surrogate in string...); write both",
        ),
        (b'{"text": "\\udc00"}', "c.jsonl:3: half of a \\ud800-\\udfff escape pair ("),
        (b'{"text": "a", "m": "\\ud800x"}', "c.jsonl:3: half of a \\ud800-\\udfff escape pair ("),
        (b'{"text": null}', "c.jsonl:3: 'text' is null, not a string; give every row a string"),
        (b'{"text": 5}', "c.jsonl:3: 'text' is an integer, not a string"),
        (b'{"txt": "a", "z": 1}', " or 'input' (its columns: 'txt', 'z'); did you mean 'txt'? name the right one with --column"),
        (
            b"{}",
            "c.jsonl:3: no column 'text' or 'prompt' or 'content' or 'question' or 'input' (its columns: none); name the right",
        ),
        (
            b'{"text": "a", "token_ids": [1]}',
            "c.jsonl:3: holds 'text' and 'token_ids', and only one can be the prompt; choose it",
        ),
        (b'{"text": "a", "id": null}', "c.jsonl:3: 'id' is null, not a string or an integer; give every row an id of its own"),
        (b'{"text": "a", "id": true}', "c.jsonl:3: 'id' is a boolean, not a string or an integer"),
        (b'{"text": "a", "id": 1.0}', "c.jsonl:3: 'id' is a float, not a string or an integer"),
        (b'{"text": "a", "id": ""}', "c.jsonl:3: 'id' is an empty string; give"),
        (b'{"text": "a", "id": "%s"}' % (b"x" * 4097), "c.jsonl:3: 'id' has 4,097 characters; use at most 4,096"),
        (
            b'{"text": "a", "n": 99999999999999999999}',
            "c.jsonl:3: 'n' cannot be stored (Integer exceeds 64-bit range); use strings",
        ),
        (
            b'{"text": "a", "n": ' + b"[" * 260 + b"]" * 260 + b"}",
            "c.jsonl:3: 'n' cannot be stored (Recursion limit reached); use",
        ),
        (b'{"messages": "hi"}', "c.jsonl:3: 'messages' is a string, not a list; write a list of objects with role and content"),
        (b'{"messages": [{"role": "user", "content": "x"}, 1]}', "c.jsonl:3: message 2 is an integer, not an object; write"),
        (
            b'{"messages": [{"role": "user", "content": null}]}',
            "c.jsonl:3: message 1 has no string 'content'; give every message",
        ),
        (b'{"token_ids": {"a": 1}}', "c.jsonl:3: 'token_ids' is an object, not a list; write a list of integers from 0"),
        (b'{"token_ids": [3, -1]}', "c.jsonl:3: 'token_ids' holds -1 at position 1; write a list of integers from 0"),
        (b'{"token_ids": [true]}', "c.jsonl:3: 'token_ids' holds True at position 0"),
        (b'{"token_ids": [1.5]}', "c.jsonl:3: 'token_ids' holds 1.5 at position 0"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(GOOD + b" \n" + line + b"\n" + GOOD)
    found = refusal(path)
    assert all(part in found for part in message.split("...")), found  # between them are words of a library, which change


@pytest.mark.parametrize("content", ['[{"text": "a"}]', '\ufeff\n [\n  {"text": "a"}\n]'])
def test_a_json_array_is_told_from_json_lines(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    assert (
        refusal(path)
        == "c.json: a JSON array, not one object per line; convert it to one object per line (jq -c '.[]' does that)"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"txt,label\na,b\n",
            "c.csv:1: no column 'text' (its columns: 'txt', 'label'); did you mean 'txt'? name the right one with",
        ),
        (b"\na\nb\n", "c.csv:2: no column 'text' (its columns: 'a'); name the right one with --column"),
        (b"text,text\na,b\n", "c.csv:1: the header has column 'text' twice; give every column its own name"),
        (b'text,b\n"two\nlines",1\n\nx\n', "c.csv:5: 1 field where the header has 2; give every row one field per column"),
        (b"text,b\na,1\na,1,2\n", "c.csv:3: 3 fields where the header has 2; give every row one field per column"),
        (b'text,b\nx,1\n"open,1\nx,2\n', "c.csv:3: not valid CSV (unexpected end of data); close every quote"),
        (b'text,b\n"a"b,1\n', "c.csv:2: not valid CSV ("),
        (b"text,b\na\rb,1\n", "c.csv:2: not valid CSV ("),
        (b'text,b\n"a\nb\xff",1\n', "c.csv:3: not valid UTF-8 (byte 0xff at offset 1 of the line)"),
        (b"id;text\n1;why\n", "c.csv:1: no column 'text' (its only column: 'id;text'); write commas between columns"),
        (b"text\n", "c.csv: no prompts; give at least one"),
        (b"", "c.csv: no prompts; give at least one"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    assert message in refusal(path, column="text")


def test_a_missing_id_column_is_found_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text,name\na,b\n")
    assert "c.csv:1: no column 'nam' (its columns: 'text', 'name'); did you mean 'name'?" in refusal(path, id_column="nam")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a", None]}, "c.parquet row 2: 'text' is null, not a string"),
        (
            {"text": ["a"], "raw": [b"x"]},
            "c.parquet row 1: column 'raw' holds bytes, which JSON cannot hold; decode or drop the column",
        ),
        ({"text": [b"a"]}, "c.parquet row 1: column 'text' holds bytes"),
        ({"text": ["a"], "x": [[0.5, float("nan")]]}, "c.parquet row 1: column 'x' holds nan, which JSON cannot hold; use null"),
        (
            {"text": ["a"], "x": [datetime.timedelta(1)]},
            "c.parquet row 1: column 'x' holds a timedelta, which JSON cannot hold; convert",
        ),
        ({"txt": ["a"]}, "c.parquet: no column 'text' or 'prompt'"),
    ],
)
def test_bad_parquet_values(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(table), path)
    assert message in refusal(path)


def test_bad_parquet_files(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.parquet", tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": ["a" * 1000, "b"]}), whole)
    problem = "c.parquet: cannot be read as Parquet ("
    path.write_bytes(whole.read_bytes()[:-10])
    assert problem in refusal(path)
    path.write_text("text,b\n")
    assert problem in refusal(path)
    times = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({"text": ["a"], "when": times}), path)
    assert re.search(r"^c\.parquet.* times? in nanoseconds, .*; cast (it|them) to microseconds$", refusal(path))
    pq.write_table(pa.table({"text": ["a"], "when": pa.array([1 << 62], pa.timestamp("us"))}), path)
    assert "c.parquet: cannot be read as Parquet (" in refusal(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), path)
    assert "c.parquet: has column 'text' twice; give every column its own name" in refusal(path)


def test_bad_text(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"good\nb\xc3\xa9d\xe9\n")
    assert refusal(path) == "c.txt:2: not valid UTF-8 (byte 0xe9 at offset 4 of the line); save the file as UTF-8"
    path.write_bytes(b"good\n\ngood\n\xe9\n")
    assert "c.txt:4: not valid UTF-8" in refusal(path)
    path.write_bytes(b"\n \r\n")
    assert refusal(path) == "c.txt: no prompts; give at least one"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (7, "row 2: a int, neither a string nor a dictionary; give texts or dictionaries"),
        (b"x", "row 2: a bytes, neither a string nor a dictionary; decode it to a str"),
        ({"text": b"x"}, "row 2: column 'text' holds bytes, which JSON cannot hold; decode or drop the column"),
        ({"text": 7}, "row 2: 'text' is an integer, not a string"),
        ({"text": "x", 1: "y"}, "row 2: has the key 1, which is not a string; name every column by a string"),
        ({1: "y"}, "row 2: has the key 1, which is not a string; name every column by a string"),
        ({"text": "x", "y": {1}}, "row 2: column 'y' holds a set, which JSON cannot hold; convert it"),
        ({"text": "x", "y": pandas.NaT}, "row 2: column 'y' holds NaT, which JSON cannot hold; use null"),
        ({"text": "x", "y": np.float32("nan")}, "row 2: column 'y' holds nan, which JSON cannot hold; use null"),
        ({"text": "x", "y": np.longdouble(1)}, "row 2: column 'y' holds a longdouble, which JSON cannot hold; convert it"),
        ({"text": "x", "y": np.datetime64(1, "ns")}, "row 2: column 'y' holds a datetime64, which JSON cannot hold; convert it"),
        ({"text": "x", "y": float("inf")}, "row 2: column 'y' holds inf, which JSON cannot hold; use null"),
        ("\udcff", "row 2: 'text' holds half of a surrogate pair; write the whole character, or remove it"),
        ({"text": "x", "y\ud800": 1}, "row 2: 'y\\ud800' holds half of a surrogate pair"),
        ({"text": "x" * (64 << 20)}, "row 2: a row longer than 64 MiB; split it"),
        ({"text": "x", "id": 10**5000}, "row 2: 'id' holds a number of thousands of digits; use at most 4,096"),
        ({"token_ids": [-(10**5000)]}, "row 2: 'token_ids' holds a number of thousands of digits"),
    ],
)
def test_bad_python_rows(row: Any, message: str) -> None:
    assert message in row_refusal(row)


def test_a_python_row_that_holds_itself() -> None:
    row: dict[str, Any] = {"text": "x"}
    row["self"] = row
    assert "row 2: column 'self' is nested too deeply" in row_refusal(row)


def test_an_id_column_that_a_row_lacks() -> None:
    rows = [{"text": "x", "name": "y"}, {"text": "x", "nome": "y"}]
    with pytest.raises(
        InputError, match=r"^row 2: no column 'name' \(its columns: 'nome'\); did you mean 'nome'\? name the right one with --id"
    ):
        Corpus.from_rows(rows, id_column="name").scan()


def test_duplicate_ids_name_both_places(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.csv"
    first.write_text('\n{"id": "x", "text": "1"}\n{"id": "3", "text": "2"}\n')
    second.write_text('id,text\ny,"3\n"\nx,4\n')
    with pytest.raises(InputError) as caught:
        Corpus(CorpusSettings(sources=(str(first), str(second)))).scan()
    assert str(caught.value) == f"{second}:4: duplicate id 'x' (first at {first}:2); ids must be unique"

    # A number given to a row without an id may be another row's own id.
    with pytest.raises(InputError, match="row 2: duplicate id '1' "):
        Corpus.from_rows([{"id": 1, "text": "x"}, "y"]).scan()
    with pytest.raises(InputError, match=r"duplicate id 'a\\nb' "):
        Corpus.from_rows([{"id": "a\nb", "text": "x"}] * 2).scan()


def test_settings_that_cannot_be_used() -> None:
    for settings, message in [
        (CorpusSettings(), "no corpus; name files"),
        (CorpusSettings(texts=("x",), limit=0), "--limit 0: leaves no prompt; use 1 or more"),
        (CorpusSettings(texts=("x",), format="xml"), "format 'xml': choose from auto, jsonl"),  # type: ignore[arg-type]
        (CorpusSettings(texts=("x",), limit="5"), "limit"),  # type: ignore[arg-type]
        (CorpusSettings(texts=("x",), column="a", id_column="a"), "--column 'a': cannot be both the prompt and its id"),
    ]:
        with pytest.raises(UsageError, match=message):
            Corpus(settings)
    for rows in ("one text", {"text": "one row"}):
        with pytest.raises(UsageError, match="give a list of texts or dictionaries"):
            Corpus.from_rows(rows)
    with pytest.raises(UsageError, match="rows is a set, which has another order in each process; give a list"):
        Corpus.from_rows({"a text", "another"})
    for frame, name in ((pandas.DataFrame({"text": ["x"]}), "DataFrame"), (pa.table({"text": ["x"]}), "Table")):
        with pytest.raises(UsageError, match=rf"rows is a {name}; give its rows as dictionaries: df\.to_dict\('records'\)"):
            Corpus.from_rows(frame)
    with pytest.raises(InputError, match=r"^rows: no prompts; give at least one"):
        Corpus.from_rows([]).scan()


def test_only_the_first_columns_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({f"c{number}": 1 for number in range(1000)}))
    assert "'c19' and 980 more)" in refusal(path)
    assert "'c20'" not in refusal(path)


def test_a_text_of_the_command_line_that_is_not_utf8() -> None:
    with pytest.raises(InputError, match=r"^--text 2: 'text' holds half of a surrogate pair; "):
        Corpus(CorpusSettings(texts=("fine", "caf\udce9"))).scan()


@pytest.mark.parametrize("given", ["The sky is", "What is 2+2?", "x" * 5000, "half\0of it", "Zeile\nZeile", "no.jsonl", "no*"])
@pytest.mark.parametrize("call", [raylens.run, partial(raylens.fit_lens, output="lens")])
def test_a_text_is_no_corpus(given: str, call: Any) -> None:
    """A single prompt in the place of a list is no path of a file; how it is given is said."""
    with pytest.raises(InputError, match=r"no such file; .* a text itself is given as \[text\], or to raylens\.lens"):
        call(given, model="demo", quiet=True)


def test_a_path_without_its_file_is_told_as_ever(tmp_path: Path) -> None:
    """It is no text."""
    with pytest.raises(InputError, match=r"no\.jsonl: no such file; check the path$"):
        raylens.run(tmp_path / "no.jsonl", model="demo", store=tmp_path / "st", quiet=True)
