"""Which layers a specification chooses, and which specifications are refused."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.errors import UsageError
from raylens.storage.layers import as_text, select_layers


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("all", range(12)),
        ("0", [0]),
        ("0,5-7", [0, 5, 6, 7]),
        (" 11 , 0 , 11 ", [0, 11]),
        ("3-3", [3]),
        ("-1", [11]),
        ("0,-1,-12", [0, 11]),
        ("::4", [0, 4, 8]),
        ("8:", [8, 9, 10, 11]),
        ("-2:", [10, 11]),
        ("::-5", [1, 6, 11]),
        (":100", range(12)),
    ],
)
def test_layers(spec: str, chosen: list[int]) -> None:
    """Lists, ranges with both ends, and Python slices; ascending and without repeats."""
    assert select_layers(spec, 12) == tuple(chosen)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        ",",
        "12",
        "0,12",
        "5-3",
        "0,10-5",
        "0,100-5",
        "-13",
        "0,-13",
        "-2--1",
        "1-",
        "٣",
        "a",
        "0 1x",
        "::0",
        "::00",
        "1:2:3:4",
        "12:",
        "0-999999999999",
        "9" * 5000,
    ],
)
def test_bad_layers(spec: str) -> None:
    """A layer the model lacks, an empty choice or a misspelling names the option and what was given."""
    with pytest.raises(UsageError, match="--layers") as caught:
        select_layers(spec, 12)
    assert repr(spec if len(spec) < 100 else f"{spec[:100]}…") in str(caught.value)


@given(st.text("0123456789-:, al", max_size=8), st.integers(1, 9))
def test_any_text_chooses_or_is_refused(spec: str, n: int) -> None:
    """No text brings anything but existing layers in order, or the error for users."""
    with suppress(UsageError):
        chosen = list(select_layers(spec, n))
        assert chosen == sorted(set(chosen) & set(range(n)))


@pytest.mark.parametrize(
    "given", [[0, 3], (0, 3), np.array([0, 3]), {3, 0}, frozenset({0, 3}), range(0, 6, 3), [np.int64(0), np.int32(3)], "0,3"]
)
def test_numbers_of_python_and_numpy(given: Any) -> None:
    """Stand for the text of them."""
    assert as_text(given) == "0,3"
    assert as_text(np.int64(3)) == as_text(3) == "3"
    assert as_text([0, True]) == [0, True]
    assert as_text({0, "a"}) == {0, "a"}
