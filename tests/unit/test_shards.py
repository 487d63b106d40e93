"""The prompts that one actor takes at a time: all of them, in order, no shard larger than is good."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.scheduler.shards import MAX_PROMPTS, cut, estimated_positions, estimated_tokens, shards
from raylens.storage.positions import Positions
from raylens.storage.record import Prompt
from raylens.workers.settings import GenerationSettings, InputSettings, LensSettings, ModelSettings, WorkerSettings

LENGTHS = st.lists(st.integers(1, 60), max_size=150)


def prompts(lengths: list[int]) -> list[Prompt]:
    return [Prompt(index, str(index), token_ids=[0] * length) for index, length in enumerate(lengths)]


def sizes(count: int, *arguments: Any, **more: Any) -> list[int]:
    """Prompts of each shard, for prompts of one token."""
    return [len(shard.prompts) for shard in shards(prompts([1] * count), count, *arguments, **more)]


@given(LENGTHS, st.integers(1, 5), st.integers(1, 200), st.integers(0, 9))
def test_no_prompt_is_lost_and_no_shard_is_too_large(lengths: list[int], actors: int, tokens: int, new: int) -> None:
    """In the corpus's order; only a prompt that is too long by itself exceeds the tokens, those generated included."""
    whole = prompts(lengths)
    found = [shard.prompts for shard in shards(whole, len(whole), actors, tokens, new)]
    assert [prompt for one in found for prompt in one] == whole
    for one in found:
        assert 1 <= len(one) <= MAX_PROMPTS
        assert len(one) == 1 or sum(len(prompt.token_ids or []) + new for prompt in one) <= tokens


def test_how_many_prompts_make_a_shard() -> None:
    """Four shards an actor so that all stay busy to the end, 64 prompts at most; where tokens are generated, one an actor."""
    assert sizes(16, 2, 1000) == [2] * 8
    assert sizes(17, 2, 1000) == [3] * 5 + [2]
    assert sizes(1000, 1, 10_000) == [64] * 15 + [40]
    assert sizes(20, 2, 1000, new=1) == [10, 10]


def test_a_full_shard_is_followed_by_one_as_large() -> None:
    """What is in the last one does not count for the next."""
    assert sizes(9, 1, 3) == [3, 3, 3]
    assert sizes(4, 1, 10, new=4) == [2, 2]


def test_the_shards_of_a_run() -> None:
    """Two batches of tokens make one, with those that are generated after each prompt."""
    model, given_input = ModelSettings("any"), InputSettings(batch_tokens=6)
    read, generated = (
        WorkerSettings(model, input=given_input),
        WorkerSettings(model, input=given_input, generation=GenerationSettings(3)),
    )
    found = [[len(shard.prompts) for shard in cut(prompts([1] * 96), 96, 1, worker)] for worker in (read, generated)]
    assert found == [[12] * 8, [3] * 32]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (Prompt(0, "0", token_ids=[1] * 7), 7),
        (Prompt(0, "0", text=""), 1),
        (Prompt(0, "0", text="x" * 300), 101),
        (Prompt(0, "0", messages=[{"role": "user", "content": "x" * 150}, {"role": "assistant", "content": "x" * 150}]), 116),
        (Prompt(0, "0", messages=[{"role": "tool"}]), 16),
    ],
    ids=["ids", "empty", "text", "chat", "a turn without words"],
)
def test_estimates(prompt: Prompt, tokens: int) -> None:
    """Of tokens by characters where they are not known."""
    assert estimated_tokens(prompt) == tokens


def lensed(prompt: Prompt, positions: str, generation: GenerationSettings | None = None) -> int:
    """The positions estimated for a run that was asked so."""
    worker = WorkerSettings(ModelSettings("any"), LensSettings(positions=positions), generation=generation)
    return estimated_positions(worker)(prompt)


@pytest.mark.parametrize("tokens", [1, 7, 2000])
@pytest.mark.parametrize("spec", ["all", "last", "last:8", "3", "-1", "5:9", ":-3", "2:", "-5:-2"])
def test_only_positions_that_are_lensed_are_expected(spec: str, tokens: int) -> None:
    """As many as the option chooses of so many tokens. Where that is none, one: of a few tokens more it may be one."""
    chosen = Positions.parse(spec).among(range(tokens), tokens)
    assert lensed(Prompt(0, "0", token_ids=[1] * tokens), spec) == max(1, len(chosen))


def test_the_steps_of_a_generation_are_expected() -> None:
    """However long the prompt is: of that nothing is lensed."""
    assert lensed(Prompt(0, "0", token_ids=[1] * 2000), "last", GenerationSettings(5)) == 5
