"""Generation in one worker: the text is transformers' own, and each step's lens is that of a plain pass over the text."""

import copy
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.utils import logging

from raylens.storage.errors import ModelError, UsageError
from raylens.storage.generated import text_of
from raylens.storage.record import Failure, Prompt, Record
from raylens.workers import generation as generation_module
from raylens.workers.certify_steps import find_way
from raylens.workers.model import load_model
from raylens.workers.settings import (
    GenerationSettings,
    InputSettings,
    LensSettings,
    ModelSettings,
    WorkerSettings,
    check,
    generation_settings,
)
from raylens.workers.stepping import Way, end_ids
from raylens.workers.worker import Worker
from tests.lens_files import save_tuned, translators
from tests.models import CLOSE, FAMILIES, VOCABULARY, build, save, sentence
from tests.reference import assert_record_is_exact

#: Prompts of different lengths, the shortest of one token; windows of the families are 4 tokens, so both sides are longer.
TEXTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [15, 16, 17, 18, 19, 20, 21, 22], [23, 24, 25]]
NEW = 9
#: Positions that are learned, rotated or linear biases; windows; recurrences; post-norms; experts; heads with steps after them.
QUIRKS = [
    "llama",
    "gpt2",
    "bloom",
    "mpt",
    "falcon, in turn",
    "opt",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gpt_oss",
    "recurrent_gemma",
    "mamba",
    "mamba2",
    "jamba",
    "qwen3_next",
    "openai-gpt",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family -> folder of its model."""
    return cache(lambda name: save(tmp_path_factory.mktemp("model"), name))


def settings(
    folder: Path, generation: GenerationSettings | None, lens: dict[str, Any] | None = None, **given: Any
) -> WorkerSettings:
    read_out = LensSettings(**{"logprobs": "float32", "top_k": 5, **(lens or {})})
    return WorkerSettings(ModelSettings(str(folder)), read_out, InputSettings(**given), generation=generation)


def prompts(texts: list[list[int]]) -> list[Prompt]:
    return [Prompt(number, f"p{number}", sentence(ids)) for number, ids in enumerate(texts)]


def records(worker: Worker, asked: Iterable[Prompt]) -> list[Record]:
    found = sorted(worker.run(list(asked)), key=lambda outcome: outcome.index)
    for outcome in found:
        assert isinstance(outcome, Record), outcome
    return found  # type: ignore[return-value]


def new_ids(record: Record) -> list[int]:
    assert record.generated is not None
    return record.token_ids[record.generated.start :]


@torch.no_grad()
def written(model: Any, ids: list[int], **given: Any) -> list[int]:
    """What transformers writes after a prompt alone."""
    prompt = torch.tensor([ids], device=model.device)
    full = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **given)
    return full[0, len(ids) :].tolist()  # type: ignore[no-any-return]


def assert_same_lens(found: Record, wanted: Record) -> None:
    """The steps of one record are those positions of another, which was made in one pass."""
    columns = [wanted.positions.index(position) for position in found.positions]
    for tap, lens in wanted.taps.items():
        other = found.taps[tap]
        np.testing.assert_allclose(other.logsumexp, lens.logsumexp[:, columns], atol=30 * CLOSE, err_msg=tap)
        np.testing.assert_allclose(other.entropy, lens.entropy[:, columns], atol=30 * CLOSE, err_msg=tap)
        np.testing.assert_allclose(other.logprobs, lens.logprobs[:, columns], atol=30 * CLOSE, err_msg=tap)
        close = np.isclose(np.diff(other.logprobs, axis=2), 0, atol=60 * CLOSE).any(axis=2)
        same = other.ids == lens.ids[:, columns]
        assert (close | same[..., :-1].all(axis=2)).all(), tap
        assert same[..., -1].mean() > 0.9, tap  # what is as good as the last one is not known
        for name, values in lens.stats.items():
            if name.endswith("rank"):
                assert np.mean(other.stats[name] != values[:, columns]) < 0.02, (tap, name)
            else:
                np.testing.assert_allclose(other.stats[name], values[:, columns], atol=60 * CLOSE, err_msg=f"{tap} {name}")


@pytest.mark.parametrize("name", QUIRKS)
def test_greedy_text_is_transformers_own_and_the_lens_that_of_one_pass(folders: Any, name: str) -> None:
    """Prompts of different lengths together give the ids that generate gives each alone, and every tap is as in a plain pass."""
    generated = records(Worker(settings(folders(name), GenerationSettings(NEW))), prompts(TEXTS))
    model, tokenizer = load_model(ModelSettings(str(folders(name))))
    cached = name != "recurrent_gemma"  # whose cache keeps what it held of the prompt before, if the next has one token
    for record, ids in zip(generated, TEXTS, strict=True):
        assert record.generated is not None
        assert record.token_ids[: len(ids)] == ids
        assert new_ids(record) == written(model, ids, max_new_tokens=NEW, use_cache=cached)
        assert record.generated.start == len(ids)
        assert record.generated.finish == ("eos" if new_ids(record)[-1] in end_ids(model, tokenizer) else "length")
        assert record.generated.finish == "eos" or len(new_ids(record)) == NEW
        assert record.positions == list(range(len(ids) - 1, len(record.token_ids) - 1))
    plain = Worker(settings(folders(name), None, {"positions": "all"}))
    again = [Prompt(record.index, record.id, token_ids=record.token_ids) for record in generated]
    for record, whole in zip(generated, records(plain, again), strict=True):
        assert_same_lens(record, whole)


def test_ways_of_the_families() -> None:
    """Most families run padded and cached; RecurrentGemma, whose state reads padding and outlives a prompt, does neither."""
    assert find_way(copy.deepcopy(build("llama"))).way == Way(padded=True, cached=True)
    found = find_way(copy.deepcopy(build("recurrent_gemma")))
    assert found.way == Way(padded=False, cached=False)
    assert found.error <= found.allowed
    assert set(QUIRKS) <= set(FAMILIES)


def test_steps_against_a_plain_float64_pass(folders: Any) -> None:
    """Every id, logprob and entropy of each step, by a reference that shares nothing with raylens; within 1e-4."""
    model, _ = load_model(ModelSettings(str(folders("llama"))))
    worker = Worker(settings(folders("llama"), GenerationSettings(NEW, 1.0, seed=2)))
    for prompt in prompts(TEXTS):
        (record,) = records(worker, [prompt])
        assert_record_is_exact(record, model, 1e-4)


def test_statistics_are_of_the_sampled_tokens(folders: Any) -> None:
    """KL, tracked tokens and the next token's logprob and rank are those of one pass; the next token is the sampled one.

    Tracked tokens may be each prompt's own.
    """
    asked = {"stats": ("kl", "next_logprob", "next_rank"), "track": ("w20", "id:7", "field:own")}
    worker = Worker(settings(folders("llama"), GenerationSettings(NEW, 1.0), asked))
    given = [msgspec.structs.replace(prompt, metadata={"own": 30 + prompt.index}) for prompt in prompts(TEXTS)]
    generated = records(worker, given)
    plain = Worker(settings(folders("llama"), None, {**asked, "positions": "all"}))
    again = [Prompt(record.index, record.id, token_ids=record.token_ids, metadata=record.metadata) for record in generated]
    for record, whole in zip(generated, records(plain, again), strict=True):
        assert record.tracked == whole.tracked == [20, 7, 30 + record.index]
        assert_same_lens(record, whole)
        assert record.generated is not None
        last = record.taps["resid_post"].stats["next_logprob"][-1]
        np.testing.assert_allclose(last, record.generated.logprobs, atol=1e-4)
        assert (record.taps["resid_post"].stats["kl"][-1] < 1e-5).all()


def test_batches_do_not_change_the_text(folders: Any) -> None:
    """Alone, in small batches, together and in another order each prompt gets the same drawn text and logprobs."""
    generation = GenerationSettings(NEW, 1.0, top_p=0.9, seed=4)
    together = records(Worker(settings(folders("llama"), generation)), prompts(TEXTS))
    assert len({tuple(new_ids(record)) for record in together}) == len(TEXTS)
    alone = Worker(settings(folders("llama"), generation, batch_tokens=1))
    assert [new_ids(record) for record in records(alone, reversed(prompts(TEXTS)))] == [new_ids(record) for record in together]
    for record, other in zip(together, records(alone, prompts(TEXTS)), strict=True):
        assert record.generated is not None
        assert other.generated is not None
        np.testing.assert_allclose(record.generated.logprobs, other.generated.logprobs, atol=30 * CLOSE)
        np.testing.assert_allclose(record.generated.sampling_logprobs, other.generated.sampling_logprobs, atol=30 * CLOSE)
    same = [Prompt(number, f"s#{number}", sentence(TEXTS[0]), sample=number) for number in (1, 2, 3)]
    samples = records(Worker(settings(folders("llama"), generation)), same)
    assert [record.generated and record.generated.sample for record in samples] == [1, 2, 3]
    assert len({tuple(new_ids(record)) for record in samples}) == 3


def test_other_lenses_read_the_steps(folders: Any, tmp_path: Path) -> None:
    """A tuned lens at each step gives what it gives in one pass over the same text, KL to the last layer included."""
    lens = save_tuned(tmp_path / "tuned", translators(3, 32))
    asked = {"lens": f"tuned:{lens}", "taps": ("resid_post",), "stats": ("kl",)}
    generated = records(Worker(settings(folders("llama"), GenerationSettings(NEW), asked)), prompts(TEXTS))
    plain = Worker(settings(folders("llama"), None, {**asked, "positions": "all"}))
    again = [Prompt(record.index, record.id, token_ids=record.token_ids) for record in generated]
    for record, whole in zip(generated, records(plain, again), strict=True):
        assert_same_lens(record, whole)
        assert (record.taps["resid_post"].stats["kl"][0] > 1e-3).all()


def test_a_model_in_a_short_type(tmp_path: Path) -> None:
    """In bfloat16 each prompt alone gets transformers' own text, and the certificate says how far steps are from whole passes."""
    folder = save(tmp_path / "short", dtype=torch.bfloat16)
    worker = Worker(settings(folder, GenerationSettings(NEW), batch_tokens=1))
    model, _ = load_model(ModelSettings(str(folder)))
    for record, ids in zip(records(worker, prompts(TEXTS)), TEXTS, strict=True):
        assert new_ids(record) == written(model, ids, max_new_tokens=NEW)
    found = worker.certificate["generation"]
    assert found["error"] <= found["allowed"] == 8 * torch.finfo(torch.bfloat16).eps


def test_steps_read_out_in_parts_are_the_same(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little memory waiting steps may take, and so however often they are read out, the record is the same."""
    worker = Worker(settings(folders("llama"), GenerationSettings(NEW), {"stats": ("kl", "next_rank")}))
    at_once = records(worker, prompts(TEXTS))
    monkeypatch.setattr(generation_module, "PENDING_BYTES", 1)
    for record, other in zip(records(worker, prompts(TEXTS)), at_once, strict=True):
        assert new_ids(record) == new_ids(other)
        assert_same_lens(record, other)


def test_the_end_of_a_sequence(folders: Any, tmp_path: Path) -> None:
    """A prompt ends at any of the ids that the checkpoint names, which is lensed too; the others of its batch go on."""
    folder = save(tmp_path / "ending")
    free = records(Worker(settings(folder, GenerationSettings(NEW))), prompts(TEXTS))
    assert all(record.generated and record.generated.finish == "length" for record in free)
    ends = [new_ids(free[0])[2], new_ids(free[3])[4]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    worker = Worker(settings(folder, GenerationSettings(NEW)))
    assert worker.certificate["generation"]["ends"] == ends
    for record, whole in zip(records(worker, prompts(TEXTS)), free, strict=True):
        assert record.generated is not None
        ids = new_ids(whole)
        stop = min((ids.index(end) + 1 for end in ends if end in ids), default=None)
        assert new_ids(record) == ids[:stop]
        assert record.generated.finish == ("length" if stop is None else "eos")
        assert len(record.positions) == len(record.generated.logprobs) == len(ids[:stop])
        shown = ids[:stop] if stop is None else ids[: stop - 1]
        assert record.generated.text == text_of(shown, worker.vocabulary)
        assert record.text == sentence(record.token_ids[: record.generated.start]) + record.generated.text
        assert_same_lens(record, whole)
    assert len(new_ids(free[0])) == NEW


def test_the_end_as_the_last_token_there_is_room_for(tmp_path: Path) -> None:
    """It is an end too, and not part of the text."""
    folder = save(tmp_path / "ending")
    (free,) = records(Worker(settings(folder, GenerationSettings(3))), prompts([[5, 6]]))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": new_ids(free)[2]}))
    worker = Worker(settings(folder, GenerationSettings(3)))
    (record,) = records(worker, prompts([[5, 6]]))
    assert record.generated is not None
    assert record.generated.finish == "eos"
    assert record.generated.text == text_of(new_ids(free)[:2], worker.vocabulary)


@pytest.mark.parametrize(
    ("asked", "own", "ends"), [(None, 7, (7,)), (None, None, ()), (3, 7, (3,)), ([3, 4], 7, (3, 4))], ids=str
)
def test_which_tokens_end_a_sequence(asked: int | list[int] | None, own: int | None, ends: tuple[int, ...]) -> None:
    """Those that the checkpoint names for generation, else the tokenizer's."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=asked))
    assert end_ids(model, SimpleNamespace(eos_token_id=own)) == ends


@pytest.mark.parametrize("asked", ["</s>", [2, None], 2.0, True, 1 << 70, [2, -(1 << 70)]], ids=str)
def test_ends_that_are_no_ids(asked: object) -> None:
    """One error when the model loads, and not a failure of each prompt."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=asked))
    with pytest.raises(ModelError, match=re.escape(f"eos_token_id is {asked!r}; it must be an id, or a list of ids")):
        end_ids(model, SimpleNamespace(eos_token_id=7))


def test_loading_leaves_the_bars_of_others(folders: Any) -> None:
    """A caller of raylens.lens still sees those of the models that it loads itself."""
    settings = ModelSettings(str(folders("llama")))
    for switch, drawn in ((logging.enable_progress_bar, True), (logging.disable_progress_bar, False)):
        switch()
        load_model(settings)
        assert logging.is_progress_bar_enabled() == drawn


def test_wishes_of_a_checkpoint_are_left_alone(folders: Any, tmp_path: Path) -> None:
    """Temperature, penalties and forced tokens that a checkpoint brings do not change what is asked for."""
    folder = save(tmp_path / "wishful")
    plain = records(Worker(settings(folder, GenerationSettings(NEW))), prompts(TEXTS))
    wishes = {
        "do_sample": True,
        "temperature": 5.0,
        "repetition_penalty": 9.0,
        "suppress_tokens": new_ids(plain[0]),
        "max_length": 3,
    }
    (folder / "generation_config.json").write_text(json.dumps(wishes))
    again = records(Worker(settings(folder, GenerationSettings(NEW))), prompts(TEXTS))
    assert [new_ids(record) for record in again] == [new_ids(record) for record in plain]


def test_not_a_number_fails_that_prompt_alone(tmp_path: Path) -> None:
    """A prompt on which the model gives NaN fails with the reason; the others of its batch get their text."""
    folder = save(tmp_path / "spoiled", spoiled=13)
    worker = Worker(settings(folder, GenerationSettings(NEW, 1.0)))
    found = {outcome.index: outcome for outcome in worker.run(prompts(TEXTS))}
    failure = found.pop(2)
    assert isinstance(failure, Failure)
    assert failure.kind == "model"
    assert failure.message.endswith("are not finite (NaN or overflow), in float32 already")
    alone = records(worker, [prompt for prompt in prompts(TEXTS) if prompt.index != 2])
    assert [new_ids(found[record.index]) for record in alone] == [new_ids(record) for record in alone]  # type: ignore[arg-type]


def test_logits_that_are_no_numbers_are_told_where_the_last_layer_is_not_lensed(folders: Any) -> None:
    """The lens of the first layer is finite, and what the model drew from is not."""
    worker = Worker(settings(folders("llama"), GenerationSettings(3), {"layers": "0"}))

    def spoil(module: nn.Module, _args: Any, output: Tensor) -> None:
        if isinstance(module, nn.Linear) and module.out_features == VOCABULARY:
            output.fill_(torch.nan)

    handle = register_module_forward_hook(spoil)
    try:
        (failure,) = worker.run(prompts([[5, 6]]))
    finally:
        handle.remove()
    assert isinstance(failure, Failure)
    assert failure.message.endswith("logits are not finite (NaN or overflow), in float32 already")


def test_prompts_leave_room(folders: Any) -> None:
    """Prompt and new tokens fit the model together; a longer prompt fails or is cut as --on-long says."""
    long = Prompt(0, "long", token_ids=[5 + n % 40 for n in range(60)])  # the model reads 64
    (failure,) = Worker(settings(folders("llama"), GenerationSettings(NEW))).run([long])
    assert isinstance(failure, Failure)
    assert (failure.kind, "the limit is 55 before 9 generated ones" in failure.message) == ("too_long", True)
    (record,) = records(Worker(settings(folders("llama"), GenerationSettings(NEW), on_long="truncate")), [long])
    assert record.generated is not None
    assert (record.generated.start, record.truncated_from, len(record.token_ids)) == (55, 60, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_that_is_a_little_off_is_not_used(dtype: torch.dtype) -> None:
    """By a fifth of the logits' spread, which a short type does not round away either."""
    model = copy.deepcopy(build("llama")).to(dtype)
    assert find_way(model).way == Way(padded=True, cached=True)
    forward = model.forward

    def stale(**given: Any) -> Any:
        output = forward(**given)
        cached = any(given.get(name) is not None for name in ("past_key_values", "cache"))  # as transformers calls it by now
        if cached and given["input_ids"].shape[1] == 1:
            waves = torch.arange(output.logits.shape[-1]).mul(7).sin().to(output.logits)
            output.logits = output.logits + 0.2 * output.logits.std() * waves
        return output

    model.forward = stale
    assert not find_way(model).way.cached


@pytest.mark.parametrize("growth", [1.0, 1e-3])
def test_a_model_that_is_wrong_token_by_token_is_refused(growth: float) -> None:
    """Without a cache and a mask a model is run anew for each step, without padding; where that is wrong too it is refused."""
    model = copy.deepcopy(build("llama"))
    forward = model.model.forward
    lost = {"attention_mask": None, "position_ids": None, "use_cache": False, "past_key_values": None, "cache": None}
    model.model.forward = lambda **given: forward(**{name: lost.get(name, value) for name, value in given.items()})
    assert find_way(model).way == Way(padded=False, cached=False)
    passes = iter(range(1, 1 << 30))
    model.lm_head.register_forward_hook(lambda _module, _given, logits: logits * (1 + growth * next(passes)))
    with pytest.raises(
        ModelError, match=r"--generate: LlamaForCausalLM does not give token by token .* \(off by .*\); generate with"
    ):
        find_way(model)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokens": 0}, "--generate 0: must be from 1"),
        ({"tokens": 5, "temperature": -1.0}, "--temperature -1.0: must be from 0"),
        ({"tokens": 5, "temperature": float("nan")}, "--temperature nan"),
        ({"tokens": 5, "temperature": float("inf")}, "--temperature inf: must be from 0 to 1000"),
        ({"tokens": 5, "temperature": 1.0, "top_p": 0.0}, "--top-p 0.0: must be over 0"),
        ({"tokens": 5, "temperature": 1.0, "top_p": float("nan")}, "--top-p nan: must be over 0"),
        ({"tokens": 5, "temperature": 1.0, "sample_top_k": 0}, "--sample-top-k 0: must be from 1"),
        ({"tokens": 5, "temperature": 1.0, "samples": 0}, "--samples 0: must be from 1"),
        ({"tokens": 5, "temperature": 1.0, "seed": -1}, "--seed -1: must be from 0"),
        ({"tokens": 5, "top_p": 0.9}, "--top-p: nothing is sampled at temperature 0; give --temperature too"),
        ({"tokens": 5, "sample_top_k": 4}, "--sample-top-k: nothing is sampled"),
        ({"tokens": 5, "samples": 2}, "--samples: nothing is sampled"),
        ({"tokens": 5, "seed": 2}, "--seed: nothing is sampled"),
        ({"tokens": None, "temperature": 0.5}, "--temperature 0.5: applies only to generation; give --generate N too"),
        ({"tokens": None, "samples": 3}, "--samples 3: applies only to generation"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, Any], words: str) -> None:
    """Refused before a model is looked for, with the remedy."""
    with pytest.raises(UsageError, match=words.replace(".", r"\.")):
        check(WorkerSettings(ModelSettings("no-such-model"), generation=generation_settings(**given)))


def test_positions_are_the_steps() -> None:
    """--positions beside --generate is refused, for the steps are what is lensed."""
    with pytest.raises(
        UsageError, match="--positions all: with --generate, the generated steps are lensed; leave out --positions"
    ):
        check(WorkerSettings(ModelSettings("demo"), LensSettings(positions="all"), generation=GenerationSettings(3)))
