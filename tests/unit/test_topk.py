"""The plain read-out against float64: ids, ties, logprobs, logsumexp, entropy, and any cut of the vocabulary into blocks."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from raylens.workers.topk import Readout, RunningReadout, readout, topk


def random_logits(rows: int, columns: int, seed: int, spread: float, digits: int | None, holes: float) -> Tensor:
    """[N, V] float32; rounded to a few digits they tie often; a share of holes is minus infinity, never a whole row."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=generator) * spread
    if digits is not None:
        logits = (logits * 10**digits).round() / 10**digits
    logits[torch.rand(rows, columns, generator=generator) < holes] = -torch.inf
    logits[:, seed % columns] = 0.25
    return logits


logits_of_all_kinds = st.builds(
    random_logits,
    rows=st.integers(1, 7),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-3, 1.0, 8.0, 200.0]),
    digits=st.sampled_from([None, 0, 1]),
    holes=st.sampled_from([0.0, 0.3, 0.95]),
)


def cut(logits: Tensor, places: list[int], k: int) -> Readout:
    """The read-out of blocks of the vocabulary that end at the places."""
    running = RunningReadout(logits.shape[0], k, logits.device)
    for block in torch.tensor_split(logits, sorted({place for place in places if 0 < place < logits.shape[1]}), dim=1):
        running.add(block)
    return running.finish()


def expected_ids(logits: Tensor, k: int) -> list[list[int]]:
    """By value, then by id; sorted in Python."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in logits.double().tolist()]


def check(found: Readout, logits: Tensor, k: int) -> None:
    """Against float64: ids exactly; numbers to float32 rounding of numbers that large."""
    exact = torch.log_softmax(logits.double(), dim=1)
    assert found.ids.tolist() == expected_ids(logits, k)
    largest = max(1.0, float(logits[logits.isfinite()].abs().max()))
    chosen = exact.gather(1, found.ids)
    finite = chosen.isfinite()
    assert bool((found.logprobs.isfinite() == finite).all())
    assert float((found.logprobs - chosen)[finite].abs().max()) < 1e-6 * largest
    assert bool((found.logprobs <= 0).all())
    assert float((found.logsumexp - logits.double().logsumexp(dim=1)).abs().max()) < 1e-6 * largest
    entropy = -torch.special.xlogy(exact.exp(), exact.exp()).sum(dim=1)
    assert float((found.entropy - entropy).abs().max()) < 1e-5
    assert bool((found.entropy >= 0).all())


@given(logits_of_all_kinds, st.integers(1, 300))
def test_whole_rows_against_float64(logits: Tensor, k: int) -> None:
    """Ids as a stable sort gives them and numbers as float64 gives them, for any k up to the whole vocabulary."""
    k = min(k, logits.shape[1])
    check(readout(logits, k), logits, k)


@given(logits_of_all_kinds, st.integers(1, 300), st.lists(st.integers(1, 299), max_size=6))
@example(random_logits(3, 300, 5, 1.0, 0, 0.0), 10, [100, 200])
@example(random_logits(3, 17, 5, 1.0, 0, 0.3), 17, [1, 2, 3])
def test_any_partition_gives_the_same(logits: Tensor, k: int, places: list[int]) -> None:
    """However the vocabulary is cut, also into blocks narrower than k, ids are the same and numbers the same to 1e-6."""
    k = min(k, logits.shape[1])
    whole, parts = readout(logits, k), cut(logits, places, k)
    check(parts, logits, k)
    assert parts.ids.equal(whole.ids)
    largest = max(1.0, float(logits[logits.isfinite()].abs().max()))
    for name in ("logprobs", "logsumexp", "entropy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("places", [[], [4], [1, 2, 3], [11]])
def test_equal_rows_take_the_lowest_ids(k: int, places: list[int]) -> None:
    """Where all logits are equal the ids are 0 to k-1, in order, across any block edge."""
    found = cut(torch.full((3, 12), 1.5), places, k)
    assert found.ids.tolist() == [list(range(k))] * 3
    torch.testing.assert_close(found.logprobs, torch.full((3, k), -float(np.log(12))))
    torch.testing.assert_close(found.entropy, torch.full((3,), float(np.log(12))))


@pytest.mark.parametrize("edge", [3, 4, 5, 6])
def test_tie_over_a_block_edge_goes_to_the_lower_id(edge: int) -> None:
    """Of equal logits on both sides of an edge the lower ids are kept, even where the higher ones arrive with a better one."""
    logits = torch.tensor([[0.0, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 3.0]])
    assert cut(logits, [edge], 4).ids.tolist() == [[7, 1, 3, 4]]


@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(1, 40))
def test_topk_of_two_values(columns: int, seed: int, k: int) -> None:
    """Rows with two values only, nearly all ties, against a stable sort."""
    assume(k <= columns)
    values = torch.randint(0, 2, (5, columns), generator=torch.Generator().manual_seed(seed)).float()
    top, index = topk(values, k)
    assert index.tolist() == expected_ids(values, k)
    assert top.equal(values.gather(1, index))


def test_large_vocabulary_in_uneven_blocks() -> None:
    """A vocabulary that is no multiple of the block, as in use, against float64 with tolerance 1e-6."""
    logits = random_logits(9, 10_007, 3, 5.0, None, 0.0)
    check(cut(logits, [4096, 8192], 10), logits, 10)


def test_certain_and_impossible_tokens() -> None:
    """Probability 1 has logprob 0 and entropy 0; a block of impossible tokens first changes nothing."""
    logits = torch.full((1, 6), -torch.inf)
    logits[0, 4] = 7.0
    for places in ([], [3], [1, 2, 5]):
        found = cut(logits, places, 3)
        assert found.ids.tolist() == [[4, 0, 1]]
        assert found.logprobs.tolist() == [[0.0, -np.inf, -np.inf]]
        assert (found.logsumexp.item(), found.entropy.item()) == (7.0, 0.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("places", [[], [2]])
def test_numbers_that_are_no_logits_show(bad: float, places: list[int]) -> None:
    """NaN or infinity anywhere in a row makes its entropy not finite, by which the lens knows, and no other row's."""
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    entropy = cut(logits, places, 2).entropy
    assert entropy.isfinite().tolist() == [True, False]


def test_nothing_possible_shows() -> None:
    """A row of minus infinity only has no distribution, and its logsumexp says so."""
    found = readout(torch.full((1, 5), -torch.inf), 2)
    assert not found.logsumexp.isfinite().any()
