"""The worker over whole lists of prompts: one outcome each, and one bad prompt costs nothing but itself."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from raylens.storage.errors import ModelError, UsageError
from raylens.storage.record import Failure, Prompt, Record
from raylens.workers.interventions.edits import read_edits
from raylens.workers.model import load_model
from raylens.workers.settings import DType, InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.models import CLOSE, VOCABULARY, save, sentence

#: Not among the probe's tokens, so that the model itself is accepted.
SPOILED, CURSED = 13, 14
TEXTS = [[5, 6, 7], [8], [SPOILED, 9, 9], [10, 11, 12, 20], [21, 22], [23, 24, CURSED, 25], [26, 27]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to which one token is poison."""
    return save(tmp_path_factory.mktemp("model"), spoiled=SPOILED)


@pytest.fixture(scope="module")
def worker(folder: Path) -> Worker:
    return Worker(settings(folder))


def settings(folder: Path, **given: Any) -> WorkerSettings:
    return WorkerSettings(ModelSettings(str(folder)), LensSettings(logprobs="float32"), InputSettings(**given))


def prompts(texts: list[list[int]]) -> list[Prompt]:
    return [Prompt(number, f"p{number}", sentence(ids), metadata={"n": number}) for number, ids in enumerate(texts)]


def by_index(outcomes: Iterator[Record | Failure]) -> dict[int, Record | Failure]:
    found = list(outcomes)
    assert len({outcome.index for outcome in found}) == len(found), "two outcomes for one prompt"
    return {outcome.index: outcome for outcome in found}


@contextmanager
def raising(token: int, error: Callable[[], Exception]) -> Iterator[None]:
    """While open, any model fails that reads the token."""

    def refuse(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Embedding) and bool((args[0] == token).any()):
            raise error()

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def test_one_outcome_a_prompt(worker: Worker) -> None:
    """Each prompt comes to one record or one failure, with its own id, index and metadata, whatever the batches were."""
    asked = [*prompts(TEXTS), Prompt(7, "empty", ""), Prompt(8, "ids", token_ids=[1, VOCABULARY])]
    found = by_index(worker.run(asked))
    assert set(found) == set(range(9))
    for prompt in asked:
        outcome = found[prompt.index]
        assert (outcome.id, outcome.metadata) == (prompt.id, prompt.metadata)
    kinds = {number: outcome.kind for number, outcome in found.items() if isinstance(outcome, Failure)}
    assert kinds == {2: "model", 7: "empty", 8: "input"}


def test_no_prompts(worker: Worker) -> None:
    """No prompts come to nothing."""
    assert list(worker.run([])) == []


def test_records_say_what_was_read(worker: Worker) -> None:
    """A record holds text, ids, display tokens and the positions, and the default taps."""
    record = by_index(worker.run(prompts([[5, 6, 7]])))[0]
    assert isinstance(record, Record)
    assert (record.text, record.token_ids, record.tokens) == ("w5 w6 w7", [5, 6, 7], ["w5", "w6", "w7"])
    assert (record.positions, record.layers) == ([2], [0, 1, 2])
    assert list(record.taps) == ["attn_out", "resid_mid", "mlp_out", "resid_post"]


@pytest.mark.parametrize(
    ("dtype", "edits", "remedy"),
    [
        ("bfloat16", {}, "; try --dtype float32"),
        (
            "float32",
            {"edits": [{"tap": "resid_post", "layers": "all", "scale": 1e38}]},
            "; --intervene may change it by too much",
        ),
    ],
)
def test_what_to_try_where_the_model_gives_no_numbers(folder: Path, dtype: DType, edits: dict[str, Any], remedy: str) -> None:
    """A longer type where there is one, and a smaller edit where there is one."""
    worker = Worker(WorkerSettings(ModelSettings(str(folder), dtype=dtype), LensSettings(), edits=read_edits(edits or None)))
    (failure,) = worker.run(prompts([[5, SPOILED, 9]]))
    assert isinstance(failure, Failure)
    assert failure.message.endswith(f"hidden states are not finite (NaN or overflow){remedy}")


def test_not_a_number_fails_that_prompt_alone(worker: Worker) -> None:
    """Where the model gives NaN the failure says so; its batch-mates get what they get without it."""
    together = by_index(worker.run(prompts(TEXTS)))
    failure = together[2]
    assert isinstance(failure, Failure)
    assert failure.kind == "model"
    assert "3 tokens" in failure.message
    assert failure.message.endswith("hidden states are not finite (NaN or overflow), in float32 already")
    apart = by_index(worker.run([prompt for prompt in prompts(TEXTS) if prompt.index != 2]))
    for number, record in apart.items():
        other = together[number]
        assert isinstance(record, Record)
        assert isinstance(other, Record)
        for tap, found in record.taps.items():
            np.testing.assert_allclose(found.logprobs, other.taps[tap].logprobs, atol=CLOSE)


def cpu_memory() -> Exception:
    """What torch raises where there is not so much memory anywhere."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58)
    return raised.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lambda: IndexError("no\nsuch row"), "model"),
        (lambda: torch.OutOfMemoryError("12 GiB"), "memory"),
        (lambda: MemoryError(), "memory"),
        (cpu_memory, "memory"),
    ],
    ids=["error", "device memory", "memory", "memory of torch"],
)
def test_error_fails_that_prompt_alone(worker: Worker, error: Callable[[], Exception], kind: str) -> None:
    """A batch in which the model raises is halved down to the prompt at fault; the others get their records."""
    with raising(CURSED, error):
        found = by_index(worker.run(prompts(TEXTS)))
    failures = {number: outcome for number, outcome in found.items() if isinstance(outcome, Failure)}
    assert {number: outcome.kind for number, outcome in failures.items()} == {2: "model", 5: kind}
    assert failures[5].message.startswith(f"4 tokens: {type(error()).__name__}:")
    assert "\n" not in failures[5].message
    assert len(found) == len(TEXTS)


@pytest.mark.parametrize("caused", [False, True])
def test_failed_batch_is_freed_before_its_halves_run(worker: Worker, caused: bool) -> None:
    """What a failed attempt held is gone when the next one starts, or running out of memory once would be for good."""
    held: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def hold(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Embedding):
            left.append(sum(reference() is not None for reference in held))
            tensor = torch.zeros(1)
            held.append(weakref.ref(tensor))
            if bool((args[0] == CURSED).any()):
                if not caused:
                    raise torch.OutOfMemoryError("12 GiB")
                try:
                    raise RuntimeError("12 GiB")
                except RuntimeError as error:
                    raise torch.OutOfMemoryError("12 GiB") from error

    handle = register_module_forward_pre_hook(hold)
    try:
        outcomes = list(worker.run(prompts([[CURSED, 1, 2], [3, 4], [5, 6], [7, 8]])))
    finally:
        handle.remove()
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [True, False, False, False]
    assert left == [0, 0, 0, 0, 0]  # four prompts, two, one, one, two


@pytest.mark.parametrize("batch_tokens", [1, 4, 10_000])
def test_batch_size_changes_nothing(folder: Path, worker: Worker, batch_tokens: int) -> None:
    """One prompt at a time or all at once, the numbers are the same to float32 rounding."""
    usual = by_index(worker.run(prompts(TEXTS)))
    found = by_index(Worker(settings(folder, batch_tokens=batch_tokens)).run(prompts(TEXTS)))
    for number, outcome in usual.items():
        other = found[number]
        assert type(outcome) is type(other)
        if isinstance(outcome, Record) and isinstance(other, Record):
            for tap, lens in outcome.taps.items():
                assert np.mean(lens.ids == other.taps[tap].ids) >= 1 - 100 * CLOSE
                # running sums round about twice as much as single products do
                np.testing.assert_allclose(lens.logprobs, other.taps[tap].logprobs, atol=2 * CLOSE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mpt"])
def test_prompts_as_long_as_the_model_reads(tmp_path: Path, name: str) -> None:
    """One of 64 tokens, which the family's configuration allows in its own words, is read; a longer one is cut to it."""
    worker = Worker(settings(save(tmp_path, name), on_long="truncate"))
    found = by_index(worker.run(prompts([[7] * 64, [7] * 70])))
    assert [(len(record.token_ids), record.truncated_from) for record in found.values() if isinstance(record, Record)] == [
        (64, None),
        (64, 70),
    ]


def test_tap_the_model_lacks(tmp_path: Path) -> None:
    """Asking for a tap that parallel blocks do not have is refused with the reason; not asking leaves it out."""
    save(tmp_path, "gpt_neox")
    asked = WorkerSettings(ModelSettings(str(tmp_path)), LensSettings(taps=("resid_mid",)))
    with pytest.raises(ModelError, match=r"--taps resid_mid: .* in parallel.*; choose from resid_pre, attn_out, mlp_out"):
        Worker(asked)
    assert Worker(settings(tmp_path)).certificate["run_taps"] == ["attn_out", "mlp_out", "resid_post"]


def test_float32_logprobs_are_not_of_running_sums(folder: Path) -> None:
    """Whoever asks for whole logprobs has each tap read by itself, which is closer to float64."""
    model = ModelSettings(str(folder), device_map='{"": "cpu"}')  # a GPU has no running sums
    paths = [
        Worker(WorkerSettings(model, LensSettings(logprobs=kind))).certificate["lens"]["path"] for kind in ("float16", "float32")
    ]
    assert ["sums of what is added" in path for path in paths] == [True, False]


def test_vocabulary_and_certificate(worker: Worker) -> None:
    """The worker knows each token's bytes, and what it measured of the model can be written as JSON."""
    assert list(worker.vocabulary) == [f"w{number}".encode() for number in range(VOCABULARY)]
    assert worker.certificate["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert worker.certificate["run_taps"] == ["attn_out", "resid_mid", "mlp_out", "resid_post"]


def test_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    """Weights that are missing would be filled at random; the lens of such a head would mean nothing."""
    weights = save(tmp_path) / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if name != "lm_head.weight"}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights \(lm_head.weight\)"):
        load_model(ModelSettings(str(tmp_path)))


@pytest.mark.parametrize("text", ['{"model": ', '{"model": [1]}', "{model: cpu}", '{"\udcff": 0}'])
def test_device_map_that_cannot_be_read(folder: Path, text: str) -> None:
    """A device map that is no JSON object from modules to devices is refused by its option's name."""
    with pytest.raises(UsageError, match="--device-map"):
        load_model(ModelSettings(str(folder), device_map=text))
