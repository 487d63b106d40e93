"""Tokens by their bytes: a tokenizer that puts a space before every text, as Llama's, names another token."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from raylens.storage.errors import UsageError
from raylens.storage.store import open_store
from raylens.storage.vocabulary import write_vocabulary
from raylens.storage.wanted import Own, tracked_number, wanted
from raylens.workers.tracked import Tracked
from tests.builders import commit_outcomes, make_record, make_run


def with_a_space(_text: str, add_special_tokens: bool) -> dict[str, Any]:
    """A tokenizer to which every text is the second token."""
    return {"input_ids": [1]}


def test_the_token_of_these_bytes() -> None:
    """A text is the token that has its very bytes, whatever the tokenizer makes of it alone."""
    assert Tracked(["Paris"], with_a_space, [b"Paris", b" Paris"]).of({}) == (0,)
    assert Tracked([" Paris"], with_a_space, [b"Paris", b" Paris"]).of({}) == (1,)


def test_the_token_that_a_run_took_for_its_name(tmp_path: Path) -> None:
    """As in vocabularies that have "1" and the byte 0x31: by the name that it was tracked by, a token is the tracked one."""
    folder, _ = make_run(tmp_path, identity={"lens": {"track": ["1"]}})
    write_vocabulary(folder.vocabulary, [b"0", b"1", b"1"])
    run = open_store(tmp_path)["demo"]
    assert wanted("1", run).tokens == (Own(1),)
    assert wanted(["id:1", "0"], run).tokens == (1, 0)


@pytest.mark.parametrize(
    ("track", "took", "asked"), [("1", 1, "1"), ("1", 1, "id:1"), ("1", 2, 2), ("id:2", 2, "id:2"), ("id:2", 2, "1")]
)
def test_a_tracked_token_by_any_of_its_names(tmp_path: Path, track: str, took: int, asked: str | int) -> None:
    """By its id, and by its text where it is the only one of these bytes that was tracked."""
    folder, _ = make_run(tmp_path, identity={"lens": {"track": ["0", track]}})
    write_vocabulary(folder.vocabulary, [b"0", b"1", b"1"])
    commit_outcomes(folder, dataclasses.replace(make_record(0), tracked=[0, took]))
    assert tracked_number("to", asked, open_store(tmp_path)["demo"]) == 2


@pytest.mark.parametrize(
    ("track", "asked", "words"),
    [
        (["1"], "id:2", "--to 'id:2': not a tracked token of run 'demo'; it tracks '1'"),
        (["id:1", "id:2"], "1", "--to '1': several tracked tokens of run 'demo', 'id:1', 'id:2'; name one so"),
    ],
)
def test_which_tracked_token_is_not_said(tmp_path: Path, track: list[str], asked: str, words: str) -> None:
    """Another of the same bytes is not the tracked one, and of two that are tracked none is chosen."""
    folder, _ = make_run(tmp_path, identity={"lens": {"track": track}})
    write_vocabulary(folder.vocabulary, [b"0", b"1", b"1"])
    commit_outcomes(folder, dataclasses.replace(make_record(0), tracked=[1, 2][: len(track)]))
    with pytest.raises(UsageError, match=words):
        tracked_number("to", asked, open_store(tmp_path)["demo"])
