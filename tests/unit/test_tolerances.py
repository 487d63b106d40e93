"""How far two ways through a model may be apart."""

import pytest
import torch

from raylens.workers.tolerances import apart, of_rows

WIDE, SHORT = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16))


def rows() -> torch.Tensor:
    """Seven of ordinary size, and a first one whose norm is a thousand times theirs, as real models have."""
    found = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    found[0] *= 1000
    return found


@pytest.mark.parametrize("spacing", [WIDE, SHORT])
def test_a_huge_row_hides_nothing(spacing: float) -> None:
    """A tenth of every other row is seen."""
    wanted = rows()
    found = wanted.clone()
    found[1:] *= 1.1
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    assert float(apart(found, wanted, spacing)) == pytest.approx(0.1)
    assert of_rows(spacing) < 0.1


def test_a_row_in_another_experts_hands() -> None:
    """In a short type one row may be other, though not wholly; in float32 none may."""
    wanted = rows()
    found = wanted.clone()
    found[3] *= 1.2
    assert float(apart(found, wanted, SHORT)) == 0.0
    assert float(apart(found, wanted, WIDE)) == pytest.approx(0.2)
    found[3] *= -1
    assert float(apart(found, wanted, SHORT)) == pytest.approx(2.2)


@pytest.mark.parametrize("spacing", [WIDE, SHORT])
def test_what_is_no_number_is_never_near(spacing: float) -> None:
    found = rows()
    found[5, 5] = torch.nan
    assert not apart(found, rows(), spacing) <= of_rows(spacing)
