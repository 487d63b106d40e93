"""Products with the unembedding against float64, by both ways, for any shape; and which way is taken."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from raylens.workers.product import ENTRIES, Unembedding
from raylens.workers.threads import FEWEST_ROWS

#: Whether oneDNN's products are taken on this processor once it says that it is AMD's.
TAKEN = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.fixture(autouse=True, scope="module")
def _amd() -> Iterator[None]:
    """Both ways are tested on any maker's processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raylens.workers.product.vendor", lambda: "AuthenticAMD")
        yield


def linear(vocabulary: int, width: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(vocabulary * width))
    return head.requires_grad_(False)


def product(unembedding: Unembedding, rows: Tensor, size: int = 300) -> Tensor:
    """[N, V] put together from the blocks, which must follow each other."""
    found = []
    for start, block in unembedding.blocks(rows, size):
        assert start == sum(part.shape[1] for part in found)
        found.append(block.clone())
    return torch.cat(found, dim=1)


@given(
    vocabulary=st.integers(1, 2 * ENTRIES + 70),
    width=st.integers(1, 97),
    rows=st.integers(1, 2 * FEWEST_ROWS),
    packed=st.booleans(),
)
@example(vocabulary=ENTRIES + 1, width=97, rows=FEWEST_ROWS, packed=True)
@example(vocabulary=2 * ENTRIES, width=64, rows=FEWEST_ROWS - 1, packed=True)
def test_either_way_is_the_product(vocabulary: int, width: int, rows: int, packed: bool) -> None:
    """Vocabularies that end inside a block, odd widths, few rows and many."""
    unembedding = Unembedding(linear(vocabulary, width))
    hidden = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    if packed:
        unembedding.try_faster(hidden)
        assert unembedding.packed == TAKEN
    expected = hidden.double() @ unembedding.head.weight.double().T
    torch.testing.assert_close(product(unembedding, hidden).double(), expected, rtol=0, atol=1e-5 * width**0.5)


@pytest.mark.parametrize("packed", [False, True])
def test_equal_entries_tie(packed: bool) -> None:
    """Two tokens of one embedding get the very same product wherever they are, so that the lower id comes first."""
    head = linear(2 * ENTRIES + 33, 75)
    head.weight[[5, ENTRIES - 1, ENTRIES, 2 * ENTRIES + 32]] = head.weight[700].clone()
    unembedding = Unembedding(head)
    rows = torch.randn(FEWEST_ROWS, 75, generator=torch.Generator().manual_seed(0))
    if packed:
        unembedding.try_faster(rows)
    found = product(unembedding, rows, size=ENTRIES)
    assert bool((found[:, [5, ENTRIES - 1, ENTRIES, 2 * ENTRIES + 32]] == found[:, [700]]).all())


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_that_are_not_finite_stay_in_their_row(packed: bool) -> None:
    """A row of NaN and one of infinities change no other row."""
    unembedding = Unembedding(linear(ENTRIES + 5, 64))
    rows = torch.randn(FEWEST_ROWS, 64, generator=torch.Generator().manual_seed(0))
    if packed:
        unembedding.try_faster(rows)
    expected = product(unembedding, rows)
    rows[3], rows[7] = torch.nan, torch.inf
    found = product(unembedding, rows)
    assert not bool(found[[3, 7]].isfinite().any())
    others = [number for number in range(FEWEST_ROWS) if number not in (3, 7)]
    assert bool((found[others] == expected[others]).all())


def test_kept_to_what_is_known_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short weights, other processors, other makers and a torch without the operators keep ``torch.mm``."""
    rows = torch.randn(FEWEST_ROWS, 64)
    short = Unembedding(linear(300, 64, torch.bfloat16))
    short.try_faster(rows)
    assert not short.packed
    for capability in ("DEFAULT", "AVX2"):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        other = Unembedding(linear(300, 64))
        other.try_faster(rows)
        assert not other.packed
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    for maker in ("GenuineIntel", ""):
        with monkeypatch.context() as patch:
            patch.setattr("raylens.workers.product.vendor", lambda maker=maker: maker)
            theirs = Unembedding(linear(300, 64))
            theirs.try_faster(rows)
            assert not theirs.packed
    monkeypatch.setattr("raylens.workers.product._laid_out", lambda block: block.no_such_operator)
    lacking = Unembedding(linear(300, 64))
    lacking.try_faster(rows)
    assert not lacking.packed


def test_a_wrong_product_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another version of torch might compute is compared with float64 before it is relied on."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("raylens.workers.product.packed_product", lambda rows, block: torch.zeros(len(rows), 300))
    unembedding = Unembedding(linear(300, 64))
    unembedding.try_faster(torch.randn(FEWEST_ROWS, 64))
    assert not unembedding.packed


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_terms_on_a_gpu(dtype: torch.dtype) -> None:
    """A short weight is multiplied as it is, and to float32's precision."""
    unembedding = Unembedding(linear(4097, 520, dtype).cuda())
    rows = torch.randn(300, 520, generator=torch.Generator().manual_seed(4)).cuda()
    unembedding.try_faster(rows)
    assert unembedding.terms
    expected = rows.double() @ unembedding.head.weight.double().T
    torch.testing.assert_close(product(unembedding, rows).double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
