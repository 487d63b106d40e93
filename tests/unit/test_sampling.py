"""Drawing tokens: the distribution, the filters, and what a draw depends on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from raylens.workers.sampling import CANDIDATES, Sampler
from raylens.workers.settings import GenerationSettings

#: Chance, if all is right, of a statistic as large as is let pass; the draws are the same in every run.
UNLIKELY = 1e-6


def filtered(logits: Tensor, settings: GenerationSettings) -> Tensor:
    """[B, V] float64 log probabilities as transformers' generate draws from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k is not None:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return torch.log_softmax(warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits.double()), dim=1)


def drawn(logits: Tensor, settings: GenerationSettings, count: int) -> list[int]:
    """So many draws from one row."""
    sampler = Sampler(settings)
    return [sampler(logits, ["p"], step).ids[0] for step in range(count)]


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(1, 1.0),
        GenerationSettings(1, 0.5, seed=7),
        GenerationSettings(1, 2.0, top_k=4),
        GenerationSettings(1, 1.3, top_p=0.8),
        GenerationSettings(1, 1.3, top_p=0.9, top_k=5),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(settings: GenerationSettings) -> None:
    """Of 5,000 draws each token's share is its probability, by a chi-square bound; a token that was ruled out never comes."""
    logits = torch.tensor([[2.0, 1.5, 1.5, 0.0, -0.5, -1.0, 3.0, -torch.inf, -4.0]])
    count = 5_000
    found = np.bincount(drawn(logits, settings, count), minlength=logits.shape[1])
    wanted = filtered(logits, settings)[0].exp().numpy() * count
    possible = wanted > 0
    assert found[~possible].sum() == 0
    chi_square = float((np.square(found - wanted)[possible] / wanted[possible]).sum())
    freedom = int(possible.sum()) - 1
    # Laurent & Massart 2000: a chi-square exceeds this with a chance of at most UNLIKELY
    bound = freedom + 2 * math.sqrt(freedom * -math.log(UNLIKELY)) - 2 * math.log(UNLIKELY)
    assert chi_square < bound


@given(
    st.integers(0, 1 << 32),
    st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([None, 1, 3, 50, 5000]),
    st.sampled_from([5, CANDIDATES + 700]),
)
def test_what_may_be_drawn_is_what_transformers_draws_from(
    seed: int, temperature: float, top_p: float, top_k: int | None, size: int
) -> None:
    """A drawn token is among those that transformers keeps, and both its logprobs are right."""
    logits = 3 * torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    settings = GenerationSettings(1, temperature, top_p, top_k, seed)
    choice = Sampler(settings)(logits, ["a", "b"], 0)
    wanted, own = filtered(logits, settings), torch.log_softmax(logits.double(), dim=1)
    for row, token in enumerate(choice.ids):
        assert choice.sampling_logprobs[row] == pytest.approx(float(wanted[row, token]), abs=1e-6)
        assert choice.logprobs[row] == pytest.approx(float(own[row, token]), abs=1e-5)


def test_a_nucleus_larger_than_the_candidates() -> None:
    """Of many tokens that are equally likely, each of the first that make the nucleus can come, and no other."""
    size = 4 * CANDIDATES
    found = drawn(torch.zeros(1, size), GenerationSettings(1, 1.0, top_p=0.5), 300)
    assert max(found) < size // 2
    assert max(found) > CANDIDATES
    assert len(set(found)) > 250


def test_a_nucleus_ends_where_it_has_its_share() -> None:
    """Two of four equal tokens have half of the probability exactly; a third is not drawn."""
    assert set(drawn(torch.zeros(1, 4), GenerationSettings(1, 1.0, top_p=0.5), 60)) == {0, 1}


def test_of_equal_tokens_the_first_are_in_the_nucleus() -> None:
    """Where it ends among equal ones, those of lower ids may be drawn."""
    logits = torch.randint(0, 3, (1, 300), generator=torch.Generator().manual_seed(0)).float()
    order = logits[0].sort(descending=True, stable=True)
    shares = torch.softmax(order.values.double(), 0)
    nucleus = set(order.indices[shares.cumsum(0) - shares < 0.5].tolist())
    assert len(nucleus) < int((logits == 2).sum())
    assert set(drawn(logits, GenerationSettings(1, 1.0, top_p=0.5), 300)) <= nucleus


def test_a_draw_depends_on_seed_prompt_and_step_alone() -> None:
    """The same key draws the same; another seed, prompt or step draws anew; neighbours in the batch do not matter."""
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    same = logits[:1].expand(3, -1)
    sampler = Sampler(GenerationSettings(1, 1.0))
    assert sampler(logits, ["a", "b", "c"], 4).ids[1:] == sampler(logits[1:], ["b", "c"], 4).ids
    assert sampler(logits, ["a", "b", "c"], 4) == Sampler(GenerationSettings(1, 1.0))(logits, ["a", "b", "c"], 4)
    by_prompt = sampler(same, ["a", "b", "c"], 0).ids
    by_step = [sampler(same[:1], ["a"], step).ids[0] for step in range(3)]
    by_seed = [Sampler(GenerationSettings(1, 1.0, seed=seed))(same[:1], ["a"], 0).ids[0] for seed in range(3)]
    for ids in (by_prompt, by_step, by_seed):
        assert len(set(ids)) == 3


def test_draws_stay_what_they_are() -> None:
    """What a seed gives is a promise to whoever keeps it: these tokens were drawn when this was written."""
    logits = torch.linspace(-2, 2, 100).unsqueeze(0)
    assert [Sampler(GenerationSettings(1, 1.0, seed=5))(logits, ["日\ud800"], step).ids[0] for step in range(8)] == [
        96,
        96,
        94,
        92,
        81,
        49,
        95,
        97,
    ]


def test_rounding_changes_no_draw() -> None:
    """Logits that differ by float32's rounding, as from another batch, draw the same tokens."""
    noise = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(1, 20_000, generator=noise)
    other = logits * (1 + 3e-7 * torch.randn(logits.shape, generator=noise))
    for settings in (GenerationSettings(1, 1.0), GenerationSettings(1, 1.5, top_p=0.95), GenerationSettings(1, 1.5, top_k=100)):
        assert drawn(logits, settings, 200) == drawn(other, settings, 200)


def test_greedy_takes_the_first_of_equals() -> None:
    """At temperature 0 the largest logit, of equal ones the lower id, at probability 1 of what is drawn from."""
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [-1.0, -torch.inf, -1.0, -2.0]])
    choice = Sampler(GenerationSettings(1))(logits, ["a", "b"], 0)
    assert choice.ids == [1, 0]
    assert choice.sampling_logprobs == [0.0, 0.0]
    np.testing.assert_allclose(choice.logprobs, torch.log_softmax(logits.double(), dim=1)[[0, 1], [1, 0]], atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_lowest_temperature_takes_the_best() -> None:
    """Where dividing by it puts every other logit out of range, the largest is drawn, surely."""
    choice = Sampler(GenerationSettings(1, 1e-308))(torch.tensor([[1.0, 30.0, 29.0]]), ["a"], 0)
    assert (choice.ids, choice.sampling_logprobs) == ([1], [0.0])


@pytest.mark.parametrize(
    "settings", [GenerationSettings(1), GenerationSettings(1, 1.0), GenerationSettings(1, 1.0, top_p=0.9)], ids=str
)
def test_logits_that_are_no_numbers_spoil_no_neighbour(settings: GenerationSettings) -> None:
    """A row of NaN gives some token whose logprob is none; the row beside it is drawn as ever."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))
    broken = logits.clone()
    broken[0, 3] = torch.nan
    sampler = Sampler(settings)
    choice, right = sampler(broken, ["a", "b"], 0), sampler(logits, ["a", "b"], 0)
    assert math.isnan(choice.logprobs[0])
    assert (choice.ids[1], choice.logprobs[1]) == (right.ids[1], right.logprobs[1])


def test_a_low_temperature_is_not_none() -> None:
    """Only at 0 the first of equals is taken: at any other each of them is drawn, with its half of the probability."""
    sampler = Sampler(GenerationSettings(1, 1e-6))
    choices = [sampler(torch.tensor([[2.0, 1.0, 2.0]]), ["a"], step) for step in range(40)]
    assert {choice.ids[0] for choice in choices} == {0, 2}
    for choice in choices:
        assert choice.sampling_logprobs[0] == pytest.approx(math.log(0.5), abs=1e-12)


def test_all_but_the_least_probable() -> None:
    """One fewer than there are rules out one token; as many as there are, or more, rule out none."""
    logits = torch.tensor([[0.3, 0.1, 0.2, 0.4]])
    assert set(drawn(logits, GenerationSettings(1, 1.0, top_k=3), 200)) == {0, 2, 3}
    assert set(drawn(logits, GenerationSettings(1, 1.0, top_k=4), 200)) == {0, 1, 2, 3}
    assert drawn(logits, GenerationSettings(1, 1.0, top_k=9), 50) == drawn(logits, GenerationSettings(1, 1.0), 50)


@pytest.mark.parametrize("settings", [GenerationSettings(1, 1.0), GenerationSettings(1, 1.0, top_p=0.9, top_k=3)], ids=str)
def test_a_logit_that_overflowed_is_told(settings: GenerationSettings) -> None:
    """An infinite logit gives a token whose logprob is no finite number, which the record's failure goes by."""
    logits = torch.zeros(1, 20)
    logits[0, 7] = torch.inf
    choice = Sampler(settings)(logits, ["a"], 0)
    assert not math.isfinite(choice.logprobs[0])
    assert choice.sampling_logprobs == [0.0]
