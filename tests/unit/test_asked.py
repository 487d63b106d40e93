"""What is asked of rows beyond their best tokens, where float32 rounds: a target's logit of another product, and large logits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from raylens.workers.asked import Asked, Final, Tally
from raylens.workers.metrics import METRICS, Truth
from raylens.workers.running import CompiledReadout
from raylens.workers.topk import RunningReadout

#: A read-out of the k best of a tally's rows.
Form = Callable[[int, Tally], RunningReadout | CompiledReadout]
FORMS: list[Form] = [
    lambda k, tally: RunningReadout(len(tally.logits), k, torch.device("cpu"), tally),
    lambda k, tally: CompiledReadout(len(tally.logits), k, tally),
]
every_form = pytest.mark.parametrize("form", FORMS, ids=["plain", "compiled"])


@every_form
@pytest.mark.parametrize(
    ("target", "off", "rank"), [(6, 0.1, 4), (6, -0.1, 4), (6, 1.1, 4), (7, -1.1, 3), (0, -0.1, 10), (2, -0.1, 8)]
)
def test_a_target_rounded_otherwise(form: Form, target: int, off: float, rank: int) -> None:
    """It is not above itself; in the list of the best its rank is its place there, and outside one beyond the list."""
    logits = torch.arange(10.0).unsqueeze(0)
    tally = Tally(Asked.of_tokens(torch.tensor([[target]]), None), logits[:, [target]] + off)
    reading = form(3, tally)
    reading.add(logits)
    found = reading.finish()
    assert found.target_ranks.tolist() == [[rank]]
    assert found.target_logprobs.max() <= 0
    if rank <= 3:
        assert found.target_logprobs[0, 0] == found.logprobs[0, rank - 1]


def logits_near_a_thousand(seed: int) -> Tensor:
    return 1000 + torch.randn(2, 200, generator=torch.Generator().manual_seed(seed))


@every_form
def test_distance_of_large_logits(form: Form) -> None:
    """KL is right to 1e-3 where float32 rounds the logsumexp of the final prediction by 3e-5, and so all its probabilities."""
    logits, final = logits_near_a_thousand(0), logits_near_a_thousand(1)
    end = RunningReadout(2, 1, torch.device("cpu"))
    end.add(final)
    read = end.finish()
    asked = Asked.of_tokens(torch.empty(2, 0).long(), Final(torch.empty(2, 1), read.logsumexp, read.entropy))
    tally = Tally(asked, torch.empty(2, 0))
    reading = form(3, tally)
    reading.add(logits, tally.weights(final.clone()))
    rows = zip(logits.double().numpy(), final.double().numpy(), strict=True)
    exact = [METRICS["kl"].reference(Truth(row, last, 0, [])) for row, last in rows]
    np.testing.assert_allclose(reading.finish().kl, exact, atol=1e-3)
