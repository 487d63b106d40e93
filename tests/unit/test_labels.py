"""One display label per token: what a reader sees, and what a reader must never get."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.labels import cell_width, fit, label, pieces, text_label, token_label

# Every code point, surrogates and unassigned ones too; half of the time one that is known to make trouble.
ANY_TEXT = st.text(
    st.characters(exclude_categories=())
    | st.sampled_from(" \t\n\r\x00\x1b\x7f\x85\xa0\xad\u0301\u200b\u200d\u202e\u2028\ufe0f\ufeff‹›·…漢🎉")
)
ANY_BYTES = st.binary() | ANY_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
ANY_TOKEN = ANY_TEXT | ANY_BYTES


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", "∅"),
        (b"", "∅"),
        ("Paris", "Paris"),
        (" Paris", "·Paris"),
        (b" Paris", "·Paris"),
        ("    return", "····return"),
        (" ", "␣"),
        ("   ", "␣␣␣"),
        ("a b", "a b"),
        ("a  ", "a␣␣"),
        ("\n", "↵"),
        (" \n", "·↵"),
        ("\n    ", "↵␣␣␣␣"),
        ("\t\r\n", "⇥⇤↵"),
        ("\u00a0", "⍽"),
        ("\u202eabc", "‹202E›abc"),
        ("\x00\x1b[31m", "‹0000›‹001B›[31m"),
        ("a\u200bb\u200d", "a‹200B›b‹200D›"),
        ("\ufeff", "‹FEFF›"),
        ("\u3000", "‹3000›"),
        ("\u2028", "‹2028›"),
        ("\u3164\u2800\ufe0f", "‹3164›‹2800›‹FE0F›"),
        ("\U000e0041", "‹E0041›"),
        ("\ue000", "‹E000›"),
        ("\ud800", "‹D800›"),
        (b"\xe0\xb8", "‹E0›‹B8›"),
        (b"\xff", "‹FF›"),
        (b" \x80ok", "·‹80›ok"),
        (b"\xed\xa0\x80", "‹ED›‹A0›‹80›"),
        (b"\xe0\xb8".decode("utf-8", "surrogateescape"), "‹E0›‹B8›"),
        ("\u0301", "◌\u0301"),
        ("\u0301a", "◌\u0301a"),
        (" \u0301", "·◌\u0301"),
        ("\n\u0301", "↵◌\u0301"),
        ("a \u0301", "a ◌\u0301"),
        ("e\u0301\u0323", "e\u0301\u0323"),
        ("\u0301\u0323", "◌\u0301\u0323"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("<b>&amp;", "<b>&amp;"),
        ("$$", "$$"),
        ("日本語", "日本語"),
        (" مرحبا", "·مرحبا"),
        ("🎉", "🎉"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_label(token: str | bytes, expected: str) -> None:
    assert label(token) == expected


def test_text_label_keeps_leading_spaces_and_shows_trailing_ones() -> None:
    assert text_label("  The capital\nof ") == "  The capital↵of␣"
    assert text_label(b"caf\xc3") == "caf‹C3›"
    assert text_label("") == ""


def test_token_label_names_ids_the_tokenizer_lacks() -> None:
    vocabulary = [b" Paris", None, b""]
    assert [token_label(vocabulary, i) for i in (0, 1, 2, 3, 49200, -1)] == [
        "·Paris",
        "‹id 1›",
        "∅",
        "‹id 3›",
        "‹id 49200›",
        "‹id -1›",
    ]


@given(ANY_TOKEN)
def test_a_label_shows_every_character(token: str | bytes) -> None:
    shown = label(token)
    assert shown
    assert shown.isprintable()
    categories = [unicodedata.category(character) for character in shown]
    assert not {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} & set(categories)
    assert not shown.startswith(" ")
    assert not shown.endswith(" ")
    assert categories[0][0] != "M"
    shown.encode("utf-8")


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_visible_text_is_left_alone(text: str) -> None:
    invisible = set("\u115f\u1160\u3164\uffa0\u2800")
    assert label(text) == text or not text or invisible & set(text)


@given(ANY_TEXT)
def test_text_and_its_bytes_have_one_label(text: str) -> None:
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        assert "‹D" in label(text)
    else:
        # Escaped bytes that join to a valid character are that character once they are bytes.
        assert label(data) == label(text) or any("\udc80" <= c <= "\udcff" for c in text)


@given(ANY_TOKEN, st.integers(-2, 40), st.sampled_from(["start", "end"]))
def test_fit_keeps_to_the_width_and_cuts_no_piece(token: str | bytes, width: int, keep: str) -> None:
    whole = label(token)
    cut = fit(whole, width, keep)  # type: ignore[arg-type]
    assert cell_width(cut) <= max(width, 0)
    assert "".join(pieces(whole)) == whole
    if cell_width(whole) <= width:
        assert cut == whole
    elif width >= 1:
        kept = cut.removesuffix("…") if keep == "start" else cut.removeprefix("…")
        parts = pieces(whole)
        prefixes = ["".join(parts[:n]) if keep == "start" else "".join(parts[n:]) for n in range(len(parts) + 1)]
        assert kept in prefixes
        assert kept != cut


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("unconstitutional", 8, "unconst…"),
        ("unconstitutional", 16, "unconstitutional"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("ab‹202E›cd", 7, "ab…"),
        ("ab‹202E›cd", 9, "ab‹202E›…"),
        ("‹E0›‹B8›", 7, "‹E0›…"),
        ("‹id 49200›", 9, "…"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
        ("", 0, ""),
        ("<‹b>‹", 3, "<‹…"),
    ],
)
def test_fit(text: str, width: int, expected: str) -> None:
    assert fit(text, width) == expected


def test_fit_can_keep_the_end() -> None:
    assert fit("The capital of France", 10, keep="end") == "…of France"


def test_labels_import_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import raylens.storage.labels; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['raylens']"
