"""What each token id stands for, in bytes: display strings collide (every partial character decodes to U+FFFD), bytes do not."""

import json
import re
from collections.abc import Callable
from typing import Any

from raylens.storage.vocabulary import Vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_bytes(tokenizer: Any, size: int) -> Vocabulary:
    """Bytes of each id below ``size``; None where the tokenizer has no token.

    Byte-level tokenizers (GPT-2 and most since) and SentencePiece-like ones are read from the token itself; any other
    falls back to decoding each id alone.
    """
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    to_bytes = _rule(tokenizer)
    vocabulary: list[bytes | None] = [None] * size
    for token, number in tokenizer.get_vocab().items():  # ids may have gaps
        if number < size:
            vocabulary[number] = token.encode() if token in special else to_bytes(token)
    return vocabulary


def _rule(tokenizer: Any) -> Callable[[str], bytes]:
    decoder = _decoder_types(tokenizer)
    if "ByteLevel" in decoder:
        table = _byte_level_table()
        return lambda token: bytes(table[char] for char in token) if all(char in table for char in token) else token.encode()
    if decoder & {"ByteFallback", "Metaspace", "Replace"}:
        return _sentencepiece_bytes
    return lambda token: str(tokenizer.convert_tokens_to_string([token])).encode()


def _decoder_types(tokenizer: Any) -> set[str]:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    # what it is pickled as; the whole tokenizer as JSON has the same, behind all of its tokens
    found = json.loads(decoder.__getstate__()) if decoder is not None else {}
    return {part.get("type", "") for part in found.get("decoders", [found])}


def _sentencepiece_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()


def _byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 is itself, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + number): byte for number, byte in enumerate(others)})
    return table
