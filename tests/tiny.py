"""A small real model for runs: random Llama weights of two layers under the demo model's real tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve

#: Words of the public domain from which prompts are made.
TEXT = (
    "call me ishmael some years ago never mind how long precisely having little or no money in my purse and nothing "
    "particular to interest me on shore i thought i would sail about a little and see the watery part of the world"
)
WORDS = TEXT.split()


def save_tiny_llama(folder: Path) -> Path:
    """Save a 2-layer, 64-wide Llama with the demo's tokenizer and chat template; the same weights each time."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(ModelSettings("demo")).path)
    return _save(folder, tokenizer, len(tokenizer), layers=2, width=64)


def save_word_llama(folder: Path, layers: int = 2, seed: int = 11) -> Path:
    """Save a 32-wide Llama whose tokens are the words of ``sentences`` and some more, 256 in all: next to no time a prompt."""
    words = {word: number for number, word in enumerate([*dict.fromkeys(WORDS), *map(str, range(256))][:256])}
    core = Tokenizer(models.WordLevel(words, unk_token="0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _save(folder, PreTrainedTokenizerFast(tokenizer_object=core, unk_token="0"), len(words), layers, width=32, seed=seed)


def _save(folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int, layers: int, width: int, seed: int = 11) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(4)  # so that a layer's writes are of the residual's size and predictions differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, words: int) -> list[str]:
    """Different prompts of ``words`` words each."""
    return [
        " ".join(WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(words)) for number in range(count)
    ]
