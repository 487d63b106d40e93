"""Which tokens --track names, with the demo model's own tokenizer."""

import re

import pytest

from raylens.storage.errors import UsageError
from raylens.storage.vocabulary import Vocabulary
from raylens.workers.preflight import load_tokenizer
from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve
from raylens.workers.token_bytes import vocabulary_bytes
from raylens.workers.tracked import track_names, tracked_ids

DEMO = ModelSettings("demo")


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer(DEMO, resolve(DEMO))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: object) -> Vocabulary:
    return vocabulary_bytes(tokenizer, 49_152)


def test_texts_and_ids(tokenizer: object, vocabulary: Vocabulary) -> None:
    """A text with its leading space is another token than without; ids are taken as they are; each is tracked once."""
    with_space, without, number = tracked_ids([" Paris", "Paris", "id:7", "id:7", " Paris"], tokenizer, vocabulary)
    assert (vocabulary[with_space], vocabulary[without], number) == (b" Paris", b"Paris", 7)
    assert tracked_ids(["<|im_end|>", "7"], tokenizer, vocabulary)[0] == vocabulary.index(b"<|im_end|>")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (" Parisian cafe", "no single token of this model: ·Par"),
        ("", "no single token of this model: nothing"),
        ("id:49152", "--track id:49152: ids are from 0 to 49151"),
        ("日本", "no single token"),
    ],
)
def test_what_is_no_token(name: str, message: str, tokenizer: object, vocabulary: Vocabulary) -> None:
    """The message shows the tokens a text comes to, which can then be named."""
    with pytest.raises(UsageError, match=re.escape(message)):
        tracked_ids([name], tokenizer, vocabulary)


def test_text_of_several_tokens(tokenizer: object) -> None:
    """Where two ids have the bytes of a text and the tokenizer makes neither of it, both are shown."""
    with pytest.raises(UsageError, match=r"several tokens: .*id:0\).*id:2\)"):
        tracked_ids(["one two"], tokenizer, [b"one two", b"x", b"one two", *[None] * 49_149])


def test_names_from_python() -> None:
    """One or several, by text or number."""
    assert track_names(" a") == (" a",)
    assert track_names(5) == ("id:5",)
    assert track_names([" a", 5]) == (" a", "id:5")
