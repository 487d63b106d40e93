"""Which positions a specification chooses, and which specifications are refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.errors import UsageError
from raylens.storage.positions import FORMS, Positions

#: Positions that were lensed of a prompt of eight tokens.
LENSED = [1, 2, 5, 6]


@pytest.mark.parametrize(
    ("spec", "of_all", "of_lensed"),
    [
        ("all", range(8), LENSED),
        ("last", [7], [6]),
        ("last:1", [7], [6]),
        ("last:3", [5, 6, 7], [2, 5, 6]),
        ("last:99", range(8), LENSED),
        ("2", [2], [2]),
        ("3", [3], []),
        ("0", [0], []),
        ("8", [], []),
        ("-1", [7], []),
        ("-2", [6], [6]),
        ("-9", [], []),
        ("1:3", [1, 2], [1, 2]),
        ("2:-1", [2, 3, 4, 5, 6], [2, 5, 6]),
        (":", range(8), LENSED),
        ("2:", range(2, 8), [2, 5, 6]),
        ("-3:", [5, 6, 7], [5, 6]),
        ("9:11", [], []),
    ],
)
def test_chosen(spec: str, of_all: list[int], of_lensed: list[int]) -> None:
    """The last ones that there are, one, or a Python slice of the prompt; beyond a short prompt there is nothing."""
    assert Positions.parse(spec).among(range(8), 8) == list(of_all)
    assert Positions.parse(spec).among(LENSED, 8) == of_lensed


@pytest.mark.parametrize(
    ("spec", "goes_on"),
    [
        *(("all", True), (":", True), ("2:", True), ("99:", True)),
        *(("2", False), ("2:5", False), (":-1", False), ("-1", False), ("-3:", False), ("last", False), ("last:3", False)),
    ],
)
def test_what_goes_on_after_the_prompt(spec: str, goes_on: bool) -> None:
    """What has no end; but what counts from the end of the prompt is of the prompt."""
    assert Positions.parse(spec).goes_on == goes_on


NONE_EVER = ["5:2", "3:3", ":0", "-1:0", "-1:-3", "-2:-2"]
NO_FORM = ["", "first", "last:", "last:-1", "last:x", "last:0", "::2", "1:2:1", "1-3", "1,2"]
#: Positions that no prompt has: one number too far, whatever the form.
TOO_FAR = ["9" * 10, "-" + "9" * 30, "9" * 5000, "last:" + "9" * 5000, "1:" + "9" * 10]


@pytest.mark.parametrize("spec", [*NO_FORM, *NONE_EVER, *TOO_FAR])
def test_refused(spec: str) -> None:
    """What is no choice of positions, or could never choose one, is refused, naming the option and the forms."""
    with pytest.raises(UsageError) as caught:
        Positions.parse(spec)
    bounds = ", in numbers of at most 9 digits" if spec in TOO_FAR else ""
    assert str(caught.value) == f"--positions {spec[:100]!r}: write {FORMS}{bounds}"


ENDS = st.one_of(st.none(), st.integers(-30, 30))


@given(ENDS, ENDS, st.integers(0, 20))
def test_slices_are_pythons(start: int | None, stop: int | None, tokens: int) -> None:
    """Any A:B chooses what Python's own slice chooses; one that is refused chooses nothing of any prompt."""
    spec = f"{'' if start is None else start}:{'' if stop is None else stop}"
    meant = list(range(tokens))[start:stop]
    try:
        assert Positions.parse(spec).among(range(tokens), tokens) == meant
    except UsageError:
        assert meant == []


@given(st.text("0123456789-:, alst", max_size=8), st.sets(st.integers(0, 8)))
def test_any_text_chooses_or_is_refused(spec: str, there: set[int]) -> None:
    """No text brings anything but positions that are there, in order, or the error for users."""
    with suppress(UsageError):
        chosen = Positions.parse(spec).among(sorted(there), 9)
        assert chosen == sorted(set(chosen) & there)
