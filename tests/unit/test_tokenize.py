"""From prompts to token ids, and every way in which a prompt cannot be read."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from raylens.storage.record import Failure, Prompt
from raylens.workers.settings import InputSettings, ModelSettings
from raylens.workers.source import resolve
from raylens.workers.tokenize import Tokenized, Tokenizer, longest_input

TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }} {% endfor %}{% if add_generation_prompt %}[reply]{% endif %}"
)
HELLO = [{"role": "user", "content": "red blue"}]


@cache
def words() -> Any:
    """A word tokenizer that puts <s> first, as many do."""
    names = ["<s>", "red", "blue", "[", "]", "user", "reply", "assistant", "<unk>"]
    core = Core(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")


def tokenize(
    prompt: Prompt, positions: str = "last", limit: int = 6, size: int = 9, new: int = 0, **settings: Any
) -> Tokenized | Failure:
    return Tokenizer(words(), InputSettings(**settings), positions, limit, size, new)(prompt)


def ids(outcome: Tokenized | Failure) -> list[int]:
    assert isinstance(outcome, Tokenized), outcome
    return outcome.ids


def failure(outcome: Tokenized | Failure) -> tuple[str, str]:
    assert isinstance(outcome, Failure), outcome
    return outcome.kind, outcome.message


def test_text_gets_the_special_tokens() -> None:
    """Plain text is tokenized with what the tokenizer puts around it."""
    outcome = tokenize(Prompt(3, "x", "red blue", metadata={"a": 1}), "all")
    assert outcome == Tokenized(Prompt(3, "x", "red blue", metadata={"a": 1}), "red blue", [0, 1, 2], [0, 1, 2], None)


def test_messages_are_rendered_by_a_given_template() -> None:
    """The template's text is tokenized without further special tokens, and asks for a reply only after a user's turn."""
    outcome = tokenize(Prompt(0, "0", messages=HELLO), limit=20, chat_template=TEMPLATE)
    assert ids(outcome) == [3, 5, 4, 1, 2, 3, 6, 4]
    assert isinstance(outcome, Tokenized)
    assert outcome.text == "[user] red blue [reply]"
    replied = [*HELLO, {"role": "assistant", "content": "blue"}]
    assert ids(tokenize(Prompt(0, "0", messages=replied), limit=20, chat_template=TEMPLATE)) == [3, 5, 4, 1, 2, 3, 7, 4, 2]


def test_messages_are_rendered_by_the_models_template() -> None:
    """Without one given, the tokenizer's own template is used: the demo's, whose markers become single ids."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(ModelSettings("demo")).path)
    outcome = Tokenizer(tokenizer, InputSettings(), "last", 100, len(tokenizer))(Prompt(0, "0", messages=HELLO))
    assert isinstance(outcome, Tokenized)
    assert "<|im_start|>user\nred blue<|im_end|>" in outcome.text
    assert outcome.text.endswith("<|im_start|>assistant\n")
    assert outcome.ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == outcome.text.count("<|im_start|>")
    assert tokenizer.decode(outcome.ids) == outcome.text


def test_ready_ids_are_taken_as_they_are() -> None:
    """Ids get no special tokens; the text is what they decode to."""
    outcome = tokenize(Prompt(0, "0", token_ids=[2, 1]))
    assert ids(outcome) == [2, 1]
    assert isinstance(outcome, Tokenized)
    assert outcome.text == "blue red"


@pytest.mark.parametrize(
    "prompt",
    [Prompt(0, "0", ""), Prompt(0, "0"), Prompt(0, "0", messages=[]), Prompt(0, "0", token_ids=[])],
    ids=["text", "nothing", "messages", "ids"],
)
def test_empty(prompt: Prompt) -> None:
    """A prompt without tokens is empty, even where the tokenizer would put a special token there."""
    assert failure(tokenize(prompt)) == ("empty", "the prompt has no tokens")


@pytest.mark.parametrize("given", [[9], [-1], [1, 2, 2**40], [-(2**70)]])
def test_ids_out_of_range(given: list[int]) -> None:
    """An id the model has no embedding for is named as such, however far off it is."""
    assert failure(tokenize(Prompt(0, "0", token_ids=given))) == ("input", "token ids must be from 0 to 8")


def test_tokenizer_with_more_tokens_than_the_model() -> None:
    """Ids of the tokenizer that the model has no embedding for are refused, not looked up."""
    assert failure(tokenize(Prompt(0, "0", "red blue"), size=2))[0] == "input"


@pytest.mark.parametrize(("rule", "kind"), [("error", "too_long"), ("skip", "skipped")])
def test_too_long(rule: str, kind: str) -> None:
    """A longer prompt is refused or skipped, with its length and the limit."""
    message = "7 tokens, the limit is 6; see --max-tokens and --on-long"
    assert failure(tokenize(Prompt(0, "0", "red " * 6), on_long=rule)) == (kind, message)


def test_too_long_is_cut() -> None:
    """A cut prompt keeps its beginning and says how long it was; positions are those of what is left."""
    outcome = tokenize(Prompt(0, "0", "red " * 5 + "blue"), "last:2", on_long="truncate", max_tokens=4)
    assert isinstance(outcome, Tokenized)
    assert (outcome.ids, outcome.positions, outcome.truncated_from) == ([0, 1, 1, 1], [2, 3], 7)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (Prompt(0, "0", "red  blue red blue red"), "red  blue red"),
        (Prompt(0, "0", messages=HELLO), "[user] red"),
        (Prompt(0, "0", token_ids=[1, 2, 2, 1, 2]), "red blue blue red"),
    ],
    ids=["text", "messages", "token_ids"],
)
def test_what_is_generated_goes_on_from_what_is_read(prompt: Prompt, text: str) -> None:
    """The text of a prompt that was cut to leave room for new tokens ends where its tokens do."""
    outcome = tokenize(prompt, limit=6, new=2, on_long="truncate", chat_template=TEMPLATE)
    assert isinstance(outcome, Tokenized)
    assert (outcome.text, len(outcome.ids)) == (text, 4)


def test_what_is_read_by_a_tokenizer_in_python() -> None:
    """It does not tell where tokens are in the text: bytes of ByT5, whose end of the text is no part of it."""
    tokenizer = Tokenizer(ByT5Tokenizer(), InputSettings(on_long="truncate"), "last", 6, 400, 2)
    outcome = tokenizer(Prompt(0, "0", "h\u00e9llo"))
    assert isinstance(outcome, Tokenized)
    assert (outcome.text, len(outcome.ids)) == ("h\u00e9l", 4)


def test_as_long_as_allowed() -> None:
    """A prompt of exactly the limit is not cut; --max-tokens cannot raise the model's own limit."""
    outcome = tokenize(Prompt(0, "0", "red " * 5), max_tokens=100)
    assert isinstance(outcome, Tokenized)
    assert (len(outcome.ids), outcome.truncated_from) == (6, None)
    assert failure(tokenize(Prompt(0, "0", "red " * 6), max_tokens=100))[0] == "too_long"


@pytest.mark.parametrize(("max_tokens", "longest"), [(4, 4), (5, 4), (3, 3), (None, 4)])
def test_room_for_new_tokens(max_tokens: int | None, longest: int) -> None:
    """What is to be generated takes from the model's limit, not from --max-tokens."""
    allowed = tokenize(Prompt(0, "0", token_ids=[1] * longest), new=2, max_tokens=max_tokens)
    assert len(ids(allowed)) == longest
    assert failure(tokenize(Prompt(0, "0", token_ids=[1] * (longest + 1)), new=2, max_tokens=max_tokens))[0] == "too_long"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "chat_template is not set"),
        ({"chat_template": "{{ raise_exception('roles must alternate') }}"}, "roles must alternate"),
        ({"chat_template": "{% if %}"}, "TemplateSyntaxError"),
        ({"chat_template": "{{ messages[7].content }}"}, "UndefinedError"),
    ],
    ids=["none", "refuses", "broken", "undefined"],
)
def test_template_that_cannot_be_used(settings: dict[str, Any], reason: str) -> None:
    """A missing, failing or broken template costs this prompt only, and its error is told in one line."""
    kind, message = failure(tokenize(Prompt(0, "0", messages=HELLO), **settings))
    assert kind == "input"
    assert message.startswith("cannot be tokenized: ")
    assert reason in message
    assert "\n" not in message


def test_positions_that_choose_nothing() -> None:
    """A slice beyond a short prompt fails that prompt, not the run."""
    assert failure(tokenize(Prompt(0, "0", "red"), "5:9")) == ("input", "--positions 5:9 chooses none of its 2 tokens")


def test_failures_keep_what_the_prompt_had() -> None:
    """Id, index and metadata of a failed prompt are the prompt's."""
    outcome = tokenize(Prompt(7, "seven", "", metadata={"lang": "fr"}))
    assert isinstance(outcome, Failure)
    assert (outcome.index, outcome.id, outcome.metadata) == (7, "seven", {"lang": "fr"})


@pytest.mark.parametrize(
    ("config", "tokenizer_limit", "longest"),
    [
        ({"max_position_embeddings": 64}, int(1e30), 64),
        ({"max_position_embeddings": 64}, 32, 32),
        ({"n_positions": 1024}, int(1e30), 1024),
        ({"max_seq_len": 2048}, int(1e30), 2048),
        ({"max_target_positions": 448, "max_source_positions": 1500}, int(1e30), 448),
        ({"max_position_embeddings": None}, 512, 512),
        ({"max_position_embeddings": -1}, 512, 512),
        ({}, int(1e30), int(1e30)),
        ({"max_position_embeddings": 64}, float("inf"), 64),  # as Python's JSON writes and reads it
    ],
)
def test_longest_input(config: dict[str, Any], tokenizer_limit: float, longest: int) -> None:
    """The smaller of what the model's positions and the tokenizer allow; a huge number where neither says."""
    assert longest_input(SimpleNamespace(**config), SimpleNamespace(model_max_length=tokenizer_limit)) == longest


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_reply_is_asked_for_after_anything_but_a_reply(role: str) -> None:
    """Of a system's text or a tool's result too the model is to go on as the assistant."""
    outcome = tokenize(Prompt(0, "0", messages=[*HELLO, {"role": role, "content": "blue"}]), limit=20, chat_template=TEMPLATE)
    assert isinstance(outcome, Tokenized)
    assert outcome.text.endswith("[reply]")
