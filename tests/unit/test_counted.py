"""Numbers of things in words."""

import pytest

from raylens.storage.counted import counted, failed


@pytest.mark.parametrize(("number", "words"), [(0, "0 records"), (1, "1 record"), (2, "2 records"), (1200, "1,200 records")])
def test_one_of_a_thing_is_said_as_one(number: int, words: str) -> None:
    assert counted(number, "record") == words
    assert counted(number, "entry", "entries") == words.replace("records", "entries").replace("record", "entry")


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({}, "no failures"),
        ({"empty": 1}, "1 empty failure"),
        ({"empty": 1, "too_long": 1}, "1 empty, 1 too_long failures"),
        ({"input": 2000}, "2,000 input failures"),
    ],
)
def test_kinds_of_failures(kinds: dict[str, int], words: str) -> None:
    assert failed(kinds) == words
