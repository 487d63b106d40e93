"""Numbers out of range are refused before a model is loaded, naming the option."""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from raylens.storage.errors import ModelError, UsageError
from raylens.storage.layers import as_text
from raylens.storage.taps import parse_taps
from raylens.workers.interventions.edits import read_edits
from raylens.workers.metrics import parse_stats
from raylens.workers.preflight import inspect_model
from raylens.workers.settings import (
    MAX_TOP_K,
    GenerationSettings,
    InputSettings,
    LensSettings,
    ModelSettings,
    WorkerSettings,
    check,
)
from raylens.workers.tracked import track_names


@pytest.mark.parametrize(
    ("lens", "given", "option"),
    [
        (LensSettings(top_k=0), InputSettings(), "--top-k 0"),
        (LensSettings(top_k=-3), InputSettings(), "--top-k -3"),
        (LensSettings(), InputSettings(max_tokens=0), "--max-tokens 0"),
        (LensSettings(), InputSettings(batch_tokens=-1), "--batch-tokens -1"),
    ],
)
def test_out_of_range(lens: LensSettings, given: InputSettings, option: str) -> None:
    """Each number below 1 is refused under its option's name."""
    with pytest.raises(UsageError, match=f"{option}: must be at least 1"):
        check(WorkerSettings(ModelSettings("demo"), lens, given))


def test_most_tokens_of_a_place() -> None:
    """As many as 16 bits count, and no more."""
    check(WorkerSettings(ModelSettings("demo"), LensSettings(top_k=MAX_TOP_K)))
    with pytest.raises(UsageError, match=f"--top-k {MAX_TOP_K + 1}: at most 65535"):
        check(WorkerSettings(ModelSettings("demo"), LensSettings(top_k=MAX_TOP_K + 1)))


@pytest.mark.parametrize(
    ("lens", "told"),
    [
        ({"top_k": "5"}, "top_k: give a whole number, as for the option on the command line, not text"),
        ({"taps": "resid_post"}, "taps: give a list or None, as for the option on the command line, not text"),
        ({"layers": [0, 2]}, "layers: give text, as for the option on the command line, not a list"),
        ({"logprobs": "float64"}, "logprobs 'float64': choose from float16, float32"),
        ({"layers": b"all"}, "layers: give text, as for the option on the command line, not bytes or a path"),
        ({"layers": Path("all")}, "layers: give text, as for the option on the command line, not bytes or a path"),
        (
            {"logprobs": "\udcff"},
            "'\\udcff': holds bytes that are not UTF-8, or half of a surrogate pair; write whole characters",
        ),
        ({"layers": range(3)}, "range(0, 3): a builtins.range; give what the option on the command line takes"),
    ],
    ids=str,
)
def test_values_of_another_type(lens: dict[str, Any], told: str) -> None:
    """What a Python caller gives as text, number or list where another is wanted is refused as such."""
    with pytest.raises(UsageError, match=re.escape(told)):
        check(WorkerSettings(ModelSettings("demo"), LensSettings(**lens)))


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)], ids=repr)
def test_numbers_of_other_libraries(number: Any) -> None:
    """Are held as those of Python, so that nothing made of settings has others; of another type they are still refused."""
    settings = WorkerSettings(
        ModelSettings("demo"),
        LensSettings(top_k=number),
        InputSettings(batch_tokens=number),
        generation=GenerationSettings(number),
    )
    check(settings)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=WorkerSettings) == settings
    assert type(settings.lens.top_k) is int
    assert msgspec.structs.replace(settings.lens, top_k=number) == settings.lens
    with pytest.raises(UsageError, match=r"positions: give text, .* not a whole number"):
        check(WorkerSettings(ModelSettings("demo"), LensSettings(positions=number)))


@pytest.mark.parametrize("number", [1 << 70, -(1 << 70), 10**5000], ids=["large", "low", "unwritable"])
def test_numbers_without_bounds(number: int) -> None:
    """An error says so, also of those that Python itself does not write."""
    for make in (
        lambda: LensSettings(top_k=number),
        lambda: LensSettings(track=track_names([number])),
        lambda: GenerationSettings(1, seed=number),
        lambda: as_text([0, number]),
        lambda: read_edits({"edits": [{"tap": "attn_out", "layers": number, "zero": True}]}),
    ):
        with pytest.raises(UsageError, match=": a number of more than 64 bits; give a smaller one"):
            make()


@pytest.mark.parametrize(
    ("path", "text"),
    [("/models/a", "/models/a"), ("~/a", "~/a"), ("org/name", "./org/name"), ("demo", "./demo"), ("a.gguf", "./a.gguf")],
)
def test_a_model_by_its_path(path: str, text: str) -> None:
    """It is on this machine: neither on the hub nor the demo, whatever its name."""
    settings = ModelSettings(Path(path))  # type: ignore[arg-type]
    assert settings == ModelSettings(text)
    with pytest.raises(ModelError, match=f"--model {re.escape(text)}: no such (folder|GGUF file); check the path"):
        inspect_model(WorkerSettings(settings))


def test_a_chat_template_that_is_not_unicode() -> None:
    """Told before the model is looked for."""
    with pytest.raises(UsageError, match="--chat-template: holds half of a surrogate pair"):
        inspect_model(WorkerSettings(ModelSettings("none"), input=InputSettings(chat_template="\ud800")))


@pytest.mark.parametrize("given", [5, None, [1], ["attn_out", None], b"attn_out"], ids=str)
def test_names_of_another_type(given: Any) -> None:
    """Taps and statistics that a Python caller gives are names, or one text of them."""
    for parse, option in ((parse_taps, "--taps"), (parse_stats, "--stats")):
        with pytest.raises(UsageError, match=f"{option} .*: give names, as a list or as a text with commas between them"):
            parse(given)


@pytest.mark.parametrize("given", [InputSettings(), InputSettings(max_tokens=1, batch_tokens=1)])
def test_in_range(given: InputSettings) -> None:
    """The defaults and the smallest numbers are accepted."""
    check(WorkerSettings(ModelSettings("demo"), LensSettings(top_k=1), given))


@pytest.mark.parametrize(
    "text", [b'{"model": {"source": "demo", "dtype": "int8"}}', b'{"model": {"source": "demo"}, "input": {"on_long": "cut"}}']
)
def test_unknown_words_are_refused(text: bytes) -> None:
    """Settings read from a file or a message accept no dtype and no rule that does not exist."""
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value"):
        msgspec.json.decode(text, type=WorkerSettings)


def test_settings_travel_unchanged() -> None:
    """What the driver sends is what an actor reads."""
    settings = WorkerSettings(
        ModelSettings("a/b", "main", "bfloat16", "auto", True),
        LensSettings(3, "0,2", ("attn_out",), "last:2", "float32"),
        InputSettings("{{ messages }}", 9, "skip", 64),
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=WorkerSettings) == settings
