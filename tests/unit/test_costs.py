"""From calls to the cost of a token and a position, and from these to a run."""

import math
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.scheduler.corpus import Corpus
from raylens.scheduler.dry_run.bill import Bill
from raylens.scheduler.dry_run.costs import Costs, Crew, fit
from raylens.scheduler.dry_run.extent import Extent, sample
from raylens.scheduler.dry_run.rehearsal import Call
from raylens.storage.writer import COMMIT_SECONDS
from raylens.workers.settings import ModelSettings, WorkerSettings

SECONDS = st.floats(1e-6, 10)
COUNTS = st.integers(1, 5000)
WORKER = WorkerSettings(ModelSettings("any"))


@given(st.lists(COUNTS, min_size=2, max_size=6), SECONDS, SECONDS)
def test_what_calls_were_made_of_is_found(tokens: list[int], token: float, position: float) -> None:
    """Calls that take exactly so much a token and a position; one with few positions beside those with many."""
    calls = [Call(count, count, token * count + position * count) for count in tokens]
    calls.append(Call(tokens[0] + 7, 1, token * (tokens[0] + 7) + position))
    found = fit(calls)
    for call in calls:
        assert found[0] * call.tokens + found[1] * call.positions == pytest.approx(call.seconds, rel=1e-6)


@given(st.lists(st.builds(Call, COUNTS, COUNTS, SECONDS), max_size=6))
def test_costs_are_never_below_nothing(calls: list[Call]) -> None:
    """Whatever was measured, both are finite numbers from 0, and one of them is more than 0 if there are calls."""
    found = fit(calls)
    assert all(math.isfinite(value) and value >= 0 for value in found)
    assert (max(found) > 0) == bool(calls)


def extent(lengths: list[int]) -> Extent:
    return Extent(len(lengths), lengths.count(0), sum(lengths), sum(lengths), sum(lengths), 1, array("I", lengths))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.integers(1, 64))
def test_a_sample_is_of_every_length(lengths: list[int], most: int) -> None:
    """No prompt twice, no more than asked for, the same each time; its lengths are spread as those of the corpus."""
    corpus = Corpus.from_rows([{"id": f"p{number}", "text": "word " * length} for number, length in enumerate(lengths)])
    found = [prompt.index for prompt in sample(corpus, extent(lengths), WORKER, most)]
    assert len(found) == len(set(found)) == min(most, len(lengths))
    assert found == [prompt.index for prompt in sample(corpus, extent(lengths), WORKER, most)]
    ordered, chosen = sorted(lengths), sorted(lengths[index] for index in found)
    for number, length in enumerate(chosen):  # one of each part of equal size
        low, high = (int(edge * len(lengths) / len(chosen)) for edge in (number, number + 1))
        assert ordered[low] <= length <= ordered[min(high, len(lengths) - 1)]


def test_the_beginning_of_a_sample_is_spread_too() -> None:
    """Of 64 lengths the first seven are an eighth apart."""
    corpus = Corpus.from_rows([{"id": f"p{number}", "text": "word"} for number in range(64)])
    found = [prompt.index for prompt in sample(corpus, extent(list(range(64))), WORKER, 64)]
    assert sorted(found[:7]) == [8, 16, 24, 32, 40, 48, 56]


def measured(*calls: Call, **stored: float) -> Any:
    """As a rehearsal tells it, with what matters here."""
    found = {"seconds": 0.0, "prompts": 2, "positions": 20, "sent_bytes": 1000, **stored}
    return SimpleNamespace(calls=list(calls), contrasts=[], stored=SimpleNamespace(**found))


def test_a_call_whose_prompts_all_failed() -> None:
    """It has no position, and where tokens cost nothing it tells nothing of how far off the others are."""
    calls = [Call(1, 10, 1.0), Call(1000, 13, 1.0), Call(1, 10, 1.0)]
    assert fit(calls)[0] == 0
    crew = Crew(1.0, 1.0, 1)
    found = Costs(measured(*calls, Call(1, 0, 1.0)), 0.0, crew).work(10, 100)
    assert (found.least, found.most) == pytest.approx((100 / 13, 10.0))
    assert Costs(measured(), 0.0, crew).work(10, 100).expected == 0


def test_the_calls_measured_are_the_range() -> None:
    """Together they are what is expected, the fastest and the slowest by themselves are its ends."""
    calls = [Call(10, 10, 1.0), Call(30, 30, 6.0)]
    found = Costs(measured(*calls), 0.0, Crew(1.0, 1.0, 1)).work(40, 40)
    assert (found.least, found.expected, found.most) == pytest.approx((4.0, 7.0, 8.0))


@pytest.mark.parametrize(
    ("crew", "least", "expected", "most"),
    [
        (Crew(1.0, 4.0, 1), 10, 12.5, 20),
        (Crew(2.0, 4.0, 1), 10, 10, 20),  # one writer is slower than two actors
        (Crew(2.0, 4.0, 2), 5, 7.5, 15),
        (Crew(2.0, math.inf, 4), 5, 5, 5),  # beside GPUs the writer has the CPUs to itself
    ],
)
def test_a_run_takes_what_its_crew_takes(crew: Crew, least: float, expected: float, most: float) -> None:
    """A tenth of a second each for a position to read and to write; three to start, and the last results wait for a commit."""
    found = Costs(measured(Call(10, 10, 1.0), seconds=2.0), 3.0, crew).run(100, 100)
    wanted = (3 + least, 3 + expected + COMMIT_SECONDS / 2, 3 + most + COMMIT_SECONDS)
    assert (found.least, found.expected, found.most) == pytest.approx(wanted)


def test_other_places_cost_in_proportion() -> None:
    """More rows to multiply are more to read, more places are more to write."""
    costs = Costs(measured(Call(10, 10, 1.0), seconds=2.0), 0.0, Crew(1.0, 1.0, 1))
    assert costs.work(100, 100, products=3.0).expected == pytest.approx(20.0)
    rows, places = costs.run(100, 100, products=3.0), costs.run(100, 100, places=3.0)
    assert (rows.least, places.least) == pytest.approx((20.0, 30.0))


def test_what_is_sent_grows_with_positions() -> None:
    """As where 32 of 256 tokens were generated to measure; by prompts where none of the sample had a position."""
    whole = Extent(10, 0, 0, 0, 800, 1, array("I"))
    for stored, sent in ((measured(), 40_000), (measured(positions=0), 5_000)):
        assert Bill(whole, stored, Costs(stored, 0.0, Crew(1.0, 1.0, 1)), (), (), 0, here=True).sent_bytes() == sent
