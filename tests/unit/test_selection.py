"""Which layers and positions a specification chooses, and which specifications are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.errors import UsageError
from raylens.workers.selection import parse_slice, select_layers, select_positions


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("all", range(12)),
        ("0", [0]),
        ("0,5-7", [0, 5, 6, 7]),
        (" 11 , 0 , 11 ", [0, 11]),
        ("3-3", [3]),
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
    "spec", ["", ",", "12", "0,12", "5-3", "-1", "1-", "a", "0 1x", "::0", "1:2:3:4", "12:", "0-999999999999", "9" * 5000]
)
def test_bad_layers(spec: str) -> None:
    """A layer the model lacks, an empty choice or a misspelling names the option and what was given."""
    with pytest.raises(UsageError, match="--layers") as caught:
        select_layers(spec, 12)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("last", [4]),
        ("last:1", [4]),
        ("last:3", [2, 3, 4]),
        ("last:99", [0, 1, 2, 3, 4]),
        ("1:3", [1, 2]),
        ("2:-1", [2, 3]),
        (":", [0, 1, 2, 3, 4]),
        ("-2:", [3, 4]),
        ("7:9", []),
    ],
)
def test_positions(spec: str, chosen: list[int]) -> None:
    """The last token, the last few, or a Python slice; a slice beyond a short prompt chooses nothing."""
    assert select_positions(spec, 5) == chosen


@pytest.mark.parametrize(
    "spec", ["", "first", "3", "last:", "last:-1", "last:x", "last:0", "last:" + "9" * 5000, "::2", "1:2:1", "1-3", "ALL"]
)
def test_bad_positions(spec: str) -> None:
    """What is no choice of positions, or could never choose one, is refused, naming the option."""
    with pytest.raises(UsageError, match="--positions") as caught:
        select_positions(spec, 5)
    assert repr(spec) in str(caught.value)


@given(st.one_of(st.none(), st.integers(-30, 30)), st.one_of(st.none(), st.integers(-30, 30)), st.integers(0, 20))
def test_slices_are_pythons(start: int | None, stop: int | None, n_tokens: int) -> None:
    """Any A:B chooses what Python's own slice chooses."""
    spec = f"{'' if start is None else start}:{'' if stop is None else stop}"
    assert parse_slice(spec) == slice(start, stop, None)
    assert select_positions(spec, n_tokens) == list(range(n_tokens))[start:stop]


@given(st.text("0123456789-:, alst", max_size=8), st.integers(1, 9))
def test_any_text_chooses_or_is_refused(spec: str, n: int) -> None:
    """No text brings anything but existing numbers in order, or the error for users."""
    for select in (select_layers, select_positions):
        try:
            chosen = list(select(spec, n))
        except UsageError:
            continue
        assert chosen == sorted(set(chosen) & set(range(n)))
