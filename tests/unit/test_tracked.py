"""Which tokens --track names, with the demo model's own tokenizer."""

import re

import numpy as np
import pytest
import torch

from raylens.storage.errors import UsageError
from raylens.storage.vocabulary import Vocabulary
from raylens.workers.preflight import load_tokenizer
from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve
from raylens.workers.token_bytes import vocabulary_bytes
from raylens.workers.tracked import Tracked, track_names

DEMO = ModelSettings("demo")


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer(DEMO, resolve(DEMO))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: object) -> Vocabulary:
    return vocabulary_bytes(tokenizer, 49_152)


def test_texts_and_ids(tokenizer: object, vocabulary: Vocabulary) -> None:
    """A text with its leading space is another token than without; ids are taken as they are; each is tracked once."""
    with_space, without, number = Tracked([" Paris", "Paris", "id:7", "id:7", " Paris"], tokenizer, vocabulary).of({})
    assert (vocabulary[with_space], vocabulary[without], number) == (b" Paris", b"Paris", 7)
    assert Tracked(["<|im_end|>", "7"], tokenizer, vocabulary).of({})[0] == vocabulary.index(b"<|im_end|>")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (" Parisian cafe", "no single token of this model: ·Par"),
        ("", "no single token of this model: nothing"),
        ("id:49152", "--track 'id:49152': ids are from 0 to 49151"),
        ("日本", "no single token"),
        ("\udcff", "--track '\\udcff': holds bytes that are not UTF-8"),
    ],
)
def test_what_is_no_token(name: str, message: str, tokenizer: object, vocabulary: Vocabulary) -> None:
    """The message shows the tokens a text comes to, which can then be named."""
    with pytest.raises(UsageError, match=re.escape(message)):
        Tracked([name], tokenizer, vocabulary)


def test_text_of_several_tokens(tokenizer: object) -> None:
    """Where two ids have the bytes of a text and the tokenizer makes neither of it, both are shown."""
    with pytest.raises(UsageError, match=r"several tokens: .*id:0\).*id:2\)"):
        Tracked(["one two"], tokenizer, [b"one two", b"x", b"one two", *[None] * 49_149])


def test_tokens_of_each_prompt(tokenizer: object, vocabulary: Vocabulary) -> None:
    """A field of the prompt names one, by text or number, beside those of all prompts; two may be the same token."""
    tracked = Tracked(["field:right", " Paris", "field:wrong"], tokenizer, vocabulary)
    right, paris, wrong = tracked.of({"right": " Rome", "wrong": 7, "more": None})
    assert (vocabulary[right], vocabulary[paris], wrong, len(tracked)) == (b" Rome", b" Paris", 7, 3)
    assert tracked.of({"right": " Paris", "wrong": " Paris"}) == (paris, paris, paris)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "--track field:right: the prompt has no field 'right' besides its text"),
        ({"right": " Parisian cafe"}, "--track field:right: ' Parisian cafe': no single token of this model: ·Par"),
        ({"right": 49_152}, "--track field:right: 49152: ids are from 0 to 49151"),
        ({"right": "id:" + "9" * 5000}, "ids are from 0 to 49151"),
        ({"right": -1}, "--track field:right: -1: no single token of this model"),
        ({"right": [" Rome"]}, "--track field:right: is a list; give the text of one token, or its id as a number"),
        ({"right": True}, "--track field:right: is a bool"),
        ({"right": None}, "--track field:right: is null; give the text of one token, or its id as a number"),
    ],
)
def test_fields_that_name_no_token(fields: dict[str, object], message: str, tokenizer: object, vocabulary: Vocabulary) -> None:
    """What is wrong is said of the prompt."""
    with pytest.raises(UsageError, match=re.escape(message)):
        Tracked(["field:right"], tokenizer, vocabulary).of(fields)


def test_an_added_token_past_the_vocabulary(tokenizer: object, vocabulary: Vocabulary) -> None:
    """The tokenizer may have more tokens than the model, which none of them is to it."""
    rome = Tracked([" Rome"], tokenizer, vocabulary).of({})[0]
    with pytest.raises(UsageError, match=f"no single token of this model: .*id:{rome}"):
        Tracked(["field:right"], tokenizer, vocabulary[:rome]).of({"right": " Rome"})


def test_names_from_python() -> None:
    """One or several, by text or number."""
    assert track_names(" a") == (" a",)
    assert track_names(5) == ("id:5",)
    assert track_names([" a", 5]) == (" a", "id:5")
    assert track_names([*range(2), np.int64(7)]) == ("id:0", "id:1", "id:7")
    assert track_names(np.array([3, 1])) == track_names(torch.tensor([3, 1])) == track_names((3, torch.tensor(1)))  # type: ignore[arg-type]
    assert track_names(np.array([" a", " b"])) == (" a", " b")  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [b" a", None, True, -1, 1.5, [" a"]])
def test_what_names_nothing(token: object) -> None:
    """Bytes are not read as ids, nor anything else as what it is not."""
    with pytest.raises(UsageError, match="is no token; give its text, or its id as a number from 0"):
        track_names([token])  # type: ignore[list-item]
    if not isinstance(token, list):
        with pytest.raises(UsageError, match="is no token"):
            track_names(token)  # type: ignore[arg-type]
