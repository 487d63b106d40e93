"""What each id stands for in bytes: joined, the bytes of a text's ids are the text."""

from functools import cache
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve
from raylens.workers.token_bytes import vocabulary_bytes

#: Bytes for which the demo's tokenizer, trained without them, has no token; it drops them.
NEVER_SEEN = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}

PIECES = ["▁", "a", "b", "▁a", "ab", "▁ab", "é", "\n"]


@cache
def demo() -> tuple[Any, list[bytes | None]]:
    tokenizer = AutoTokenizer.from_pretrained(resolve(ModelSettings("demo")).path)
    return tokenizer, list(vocabulary_bytes(tokenizer, len(tokenizer)))


@cache
def sentencepiece() -> tuple[Any, list[bytes | None]]:
    """Llama-2's kind: pieces with ▁ for the space, and a token for each byte that no piece covers."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return tokenizer, list(vocabulary_bytes(tokenizer, len(tokenizer)))


def joined(ids: list[int], vocabulary: list[bytes | None]) -> bytes:
    return b"".join(vocabulary[number] or b"?" for number in ids)


@given(st.text(max_size=60))
@example("日本語 🎉👩‍🔬\r\n\t  x \x00 ��")
@example("<|im_start|>user\nhi<|im_end|>")
def test_byte_level_ids_join_to_the_text(text: str) -> None:
    """For the demo's byte-level tokenizer the bytes of any text's ids are its UTF-8, whole characters or not."""
    tokenizer, vocabulary = demo()
    expected = bytes(byte for byte in text.encode() if byte not in NEVER_SEEN)
    assert joined(tokenizer(text, add_special_tokens=False)["input_ids"], vocabulary) == expected


@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), min_size=1, max_size=30))
@example("ab ab é 日 a\n")
def test_sentencepiece_ids_join_to_the_text(text: str) -> None:
    """For pieces with ▁ and byte fallback they are its UTF-8 after the space that such tokenizers put first."""
    tokenizer, vocabulary = sentencepiece()
    assert joined(tokenizer(text)["input_ids"], vocabulary) == b" " + text.encode()


def test_each_byte_has_its_token() -> None:
    """Every single byte that UTF-8 may hold can be told apart, where display strings would all be U+FFFD."""
    for _, vocabulary in (demo(), sentencepiece()):
        # 0xC0, 0xC1 and 0xF5 to 0xFF occur in no text, and a trained vocabulary may lack others that are rare
        singles = {token for token in vocabulary if token is not None and len(token) == 1}
        assert {bytes([byte]) for byte in range(0x80, 0xC0)} <= singles


def test_special_tokens_are_their_own_text() -> None:
    """Special and added tokens stand for their names, also where these hold characters the byte table would read otherwise."""
    tokenizer, vocabulary = demo()
    for token in ("<|im_start|>", "<|endoftext|>", "<jupyter_code>"):
        assert vocabulary[tokenizer.convert_tokens_to_ids(token)] == token.encode()
    core = Tokenizer(models.BPE(vocab={"a": 0, "Ġa": 1}, merges=[]))
    core.decoder = decoders.ByteLevel()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_tokens([AddedToken("Ġraw é▁", normalized=False)])
    core.add_special_tokens([AddedToken("<Ā>", special=True)])
    found = vocabulary_bytes(PreTrainedTokenizerFast(tokenizer_object=core), 4)
    assert list(found) == [b"a", b" a", "Ġraw é▁".encode(), "<Ā>".encode()]


def test_metaspace_without_byte_fallback() -> None:
    """T5's and XGLM's kind, where one decoder only puts the spaces back."""
    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("<0x41>", -3.0)], unk_id=0))
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert list(vocabulary_bytes(tokenizer, 3)) == [b"<unk>", b" the", b" "]


def test_any_other_tokenizer_decodes_each_id_alone() -> None:
    """A word-piece tokenizer has no rule of ours; its own decoding of the token is taken."""
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece(prefix="##")
    found = vocabulary_bytes(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"), 3)
    assert found[0] == b"[UNK]"
    assert found[1] == b"play"
    assert b"ing" in (found[2] or b"")


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_size_is_the_models(size: int) -> None:
    """The list is as long as the model's vocabulary: ids without a token are None, gaps too, and tokens beyond are left out."""
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "far": 6}, unk_token="a"))
    found = vocabulary_bytes(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="a"), size)
    assert list(found) == [b"a", b"b", None, None, None, None, b"far", None][:size]
