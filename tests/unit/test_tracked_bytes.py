"""A tokenizer that puts a space before every text, as Llama's does, names another token than the text's own."""

from typing import Any

from raylens.workers.tracked import Tracked


def with_a_space(_text: str, add_special_tokens: bool) -> dict[str, Any]:
    """A tokenizer to which every text is the second token."""
    return {"input_ids": [1]}


def test_the_token_of_these_bytes() -> None:
    """A text is the token that has its very bytes, whatever the tokenizer makes of it alone."""
    assert Tracked(["Paris"], with_a_space, [b"Paris", b" Paris"]).of({}) == (0,)
    assert Tracked([" Paris"], with_a_space, [b"Paris", b" Paris"]).of({}) == (1,)
