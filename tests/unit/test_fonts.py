"""Labels in pictures are cut to the width that there is."""

from hypothesis import given
from hypothesis import strategies as st

from raylens.storage import labels
from raylens.storage.fonts import choose_fonts


@given(st.text("iW漢 ·‹›", max_size=30), st.floats(0, 4))
def test_a_label_is_cut_as_little_as_it_must(text: str, inches: float) -> None:
    """As cutting it by a cell at a time would."""
    fonts = choose_fonts()
    found = fonts.fit(text, inches, 10)
    expected = fonts.drawable(text)
    for cells in range(labels.cell_width(expected) - 1, -1, -1):
        if fonts.width(expected, 10) <= inches:
            break
        expected = labels.fit(fonts.drawable(text), cells)
    assert found == expected
