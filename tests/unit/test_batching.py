"""Batches hold every prompt once and no more tokens than told; padding is on the right and rows name the right places."""

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.record import Prompt, Record
from raylens.workers.adapter import adapt
from raylens.workers.batching import PADDING_SHARE, batches, pad, position_switch
from raylens.workers.lens import Lens
from raylens.workers.settings import GenerationSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.tokenize import Tokenized
from raylens.workers.worker import Worker
from tests.builders import same
from tests.models import FAMILIES, make, save


def tokenized(number: int, length: int, positions: list[int] | None = None) -> Tokenized:
    ids = [number * 1000 + place + 1 for place in range(length)]
    return Tokenized(Prompt(number, str(number)), "", ids, positions if positions is not None else [length - 1], None)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_each_prompt_once_within_the_limit(lengths: list[int], limit: int) -> None:
    """Each prompt is in one batch, longest first; padded to its longest it is within the limit and mostly tokens."""
    prompts = [tokenized(number, length) for number, length in enumerate(lengths)]
    found = list(batches(prompts, limit))
    assert sorted(prompt.prompt.index for batch in found for prompt in batch) == list(range(len(lengths)))
    order = [len(prompt.ids) for batch in found for prompt in batch]
    assert order == sorted(order, reverse=True)
    for batch in found:
        padded = len(batch) * len(batch[0].ids)
        assert len(batch) == 1 or padded <= limit
        assert padded - sum(len(prompt.ids) for prompt in batch) <= limit // PADDING_SHARE


def test_batches_are_full() -> None:
    """A batch is closed only when one more prompt would not fit."""
    assert [len(batch) for batch in batches([tokenized(n, 10) for n in range(7)], 30)] == [3, 3, 1]


def test_tokens_to_be_generated_count() -> None:
    """Each prompt takes the room of what is to follow it too."""
    assert [len(batch) for batch in batches([tokenized(n, 10) for n in range(7)], 60, new=10)] == [3, 3, 1]


def test_short_prompts_do_not_wait_behind_a_long_one() -> None:
    """Prompts much shorter than the longest are batched among themselves."""
    assert [len(batch) for batch in batches([tokenized(0, 60), *(tokenized(n, 10) for n in range(1, 9))], 100)] == [1, 8]


def test_same_length_keeps_the_order_of_the_corpus() -> None:
    """Prompts of one length stay in order, so that equal runs form equal batches."""
    (batch,) = batches([tokenized(n, 3) for n in range(5)], 100)
    assert [prompt.prompt.index for prompt in batch] == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_rows_name_the_chosen_tokens(lengths: list[int], random: Random) -> None:
    """Row n of the flattened batch is the n-th chosen token, prompt after prompt; the mask covers the real tokens only."""
    prompts = [
        tokenized(number, length, sorted(random.sample(range(length), random.randint(1, length))))
        for number, length in enumerate(lengths)
    ]
    batch = pad(prompts, torch.device("cpu"))
    assert batch.ids.shape == batch.mask.shape == (len(lengths), max(lengths))
    chosen = [prompt.ids[place] for prompt in prompts for place in prompt.positions]
    assert batch.ids.flatten()[batch.rows].tolist() == chosen
    assert batch.mask.sum(dim=1).tolist() == lengths
    for row, prompt in enumerate(prompts):
        assert batch.ids[row, : len(prompt.ids)].tolist() == prompt.ids
        assert bool((batch.mask[row, : len(prompt.ids)] == 1).all())


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(0, 10))
def test_prompts_on_both_sides_of_a_switch_share_no_batch(lengths: list[int], new: int) -> None:
    """All end at or before it, or all are beyond it, or all pass it at one step."""
    found = list(batches([tokenized(number, length) for number, length in enumerate(lengths)], 1000, new, switch=16))
    assert sum(map(len, found)) == len(lengths)
    for batch in found:
        each = [len(prompt.ids) for prompt in batch]
        assert all(length + new <= 16 for length in each) or all(length > 16 for length in each) or len(set(each)) == 1


@pytest.mark.parametrize(("lengths", "switch"), [((32,), 32), ((32, 16), 16), ((), None)])
def test_the_switch_of_several_kinds_of_layers(lengths: tuple[int, ...], switch: int | None) -> None:
    """Where each kind turns positions in its own way it is the first of them."""
    kinds = {f"kind{n}": {"rope_type": "longrope", "original_max_position_embeddings": one} for n, one in enumerate(lengths)}
    assert position_switch(SimpleNamespace(rope_parameters=kinds)) == switch


def test_the_switch_by_its_older_name() -> None:
    """As the configuration has it that came with Phi-3 at first."""
    rope = {"type": "su", "short_factor": [1.0], "long_factor": [4.0]}
    config = SimpleNamespace(rope_scaling=rope, original_max_position_embeddings=16, max_position_embeddings=64)
    assert position_switch(config) == 16


def turning_at_16() -> Any:
    """A model that turns positions otherwise beyond a length, as Phi-3 for 128k tokens does."""
    sizes = dict(FAMILIES["phi3"].config)
    half = sizes["hidden_size"] // sizes["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [4.0 + n for n in range(half)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16, **factors}
    return make(
        "phi3", **sizes | {"original_max_position_embeddings": 16, "max_position_embeddings": 64, "rope_parameters": rope}
    )


def test_a_prompt_does_not_feel_longer_ones_in_its_batch() -> None:
    """Where positions are turned otherwise beyond a length transformers goes by the longest; batches keep the two apart."""
    model = turning_at_16()
    assert position_switch(model.config) == 16
    adapter = adapt(model)
    lens = Lens(adapter, LensSettings(5, logprobs="float32"), tuple(range(len(adapter.sites))), ("resid_post",))

    def read(*prompts: Tokenized) -> dict[str, Record]:
        found = [one for batch in batches(prompts, 4096, switch=16) for one in lens(pad(batch, model.device))]
        return {one.id: one for one in found if isinstance(one, Record)}

    short, long = (Tokenized(Prompt(n, str(n)), "", list(range(5, 5 + n)), [n - 1], None) for n in (12, 30))
    assert same(read(short, long)["12"], read(short)["12"])


@pytest.mark.parametrize("generation", [None, GenerationSettings(1)], ids=["read", "generate"])
def test_a_worker_keeps_both_sides_of_the_switch_apart(tmp_path: Path, generation: GenerationSettings | None) -> None:
    """What a prompt gets beside a longer one is to the bit what it gets alone, also where tokens are generated."""
    turning_at_16().save_pretrained(save(tmp_path, "phi3"))
    worker = Worker(WorkerSettings(ModelSettings(str(tmp_path)), LensSettings(5), generation=generation))
    short, long = (Prompt(n, str(n), token_ids=list(range(5, 5 + n))) for n in (12, 30))
    found = {one.id: one for one in worker.run([short, long])}
    (alone,) = worker.run([short])
    assert isinstance(alone, Record)
    assert same(found["12"], alone)
