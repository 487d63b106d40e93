"""Tokens by their bytes: a tokenizer that puts a space before every text, as Llama's, names another token."""

from pathlib import Path
from typing import Any

from raylens.storage.store import open_store
from raylens.storage.vocabulary import write_vocabulary
from raylens.storage.wanted import Own, wanted
from raylens.workers.tracked import Tracked
from tests.builders import make_run


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
