"""Products with the unembedding against float64, by both ways, for any shape; and which way is taken."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from raylens.workers.kernels import panels as kernel
from raylens.workers.product import FEWEST_ROWS, Unembedding

#: Rows and entries on either side of what a tile and a panel hold.
ROWS, ENTRIES = kernel.SHAPE.rows, kernel.SHAPE.entries
TYPES = st.sampled_from([torch.float32, torch.bfloat16])
#: Size of blocks: not a whole number of panels.
SIZE = 9 * ENTRIES + 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread_of_amd() -> Iterator[None]:
    """Both ways are tested on any maker's processor, as each of several threads takes them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raylens.workers.product.vendor", lambda: "AuthenticAMD")
        yield
    torch.set_num_threads(threads)


def linear(vocabulary: int, width: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(vocabulary * width))
    return head.requires_grad_(False)


def product(unembedding: Unembedding, rows: Tensor, size: int = SIZE) -> Tensor:
    """[N, V] put together from the blocks, which must follow each other."""
    found = []
    for start, block in unembedding.blocks(rows, size):
        assert start == sum(part.shape[1] for part in found)
        found.append(block.clone())
    return torch.cat(found, dim=1)


def laid_out(head: nn.Linear) -> Unembedding:
    """Products by panels."""
    unembedding = Unembedding(head)
    unembedding.try_faster(torch.randn(3, head.in_features, generator=torch.Generator().manual_seed(0)))
    assert unembedding.panels is not None
    return unembedding


@given(
    vocabulary=st.integers(1, 21 * ENTRIES),
    width=st.integers(1, 97),
    rows=st.integers(1, 3 * ROWS + 1),
    dtype=TYPES,
    panels=st.booleans(),
)
@example(vocabulary=SIZE + 1, width=97, rows=ROWS, dtype=torch.float32, panels=True)
@example(vocabulary=2 * ENTRIES, width=64, rows=ROWS - 1, dtype=torch.bfloat16, panels=True)
def test_either_way_is_the_product(vocabulary: int, width: int, rows: int, dtype: torch.dtype, panels: bool) -> None:
    """Vocabularies that end inside a panel or a block, odd widths, few rows and many."""
    head = linear(vocabulary, width, dtype)
    unembedding = laid_out(head) if panels else Unembedding(head)
    hidden = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    expected = hidden.double() @ head.weight.double().T
    torch.testing.assert_close(product(unembedding, hidden).double(), expected, rtol=0, atol=1e-5 * width**0.5)


@given(rows=st.integers(1, 40), first=st.integers(0, 39), dtype=TYPES, size=st.integers(1, 300))
def test_a_product_is_the_same_in_any_company(rows: int, first: int, dtype: torch.dtype, size: int) -> None:
    """By panels a row's products have the same bits whatever rows it is multiplied with, and in whatever blocks."""
    unembedding = laid_out(linear(5 * ENTRIES + 7, 75, dtype))
    hidden = torch.randn(40, 75, generator=torch.Generator().manual_seed(1))
    part = slice(first, first + rows)
    assert torch.equal(product(unembedding, hidden[part], size), product(unembedding, hidden)[part])


@pytest.mark.parametrize("width", [576, 4096])
def test_wide_sums_round_little(width: int) -> None:
    """By panels no number is one long sum, which would be several times as far from float64 (1.4e-6 and 3.6e-6)."""
    head = linear(200, width)
    head.weight.abs_()  # sums that only grow are rounded most
    rows = torch.rand(60, width, generator=torch.Generator().manual_seed(0)) + 0.5
    exact = rows.double() @ head.weight.double().T
    found = product(laid_out(head), rows)
    assert float((found / exact - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("panels", [False, True])
def test_equal_entries_tie(panels: bool) -> None:
    """Two tokens of one embedding get the very same product wherever they are, so that the lower id comes first."""
    last = 20 * ENTRIES + 2
    head = linear(last + 1, 75)
    head.weight[[5, ENTRIES - 1, ENTRIES, last]] = head.weight[70].clone()
    rows = torch.randn(FEWEST_ROWS, 75, generator=torch.Generator().manual_seed(0))
    found = product(laid_out(head) if panels else Unembedding(head), rows)
    assert bool((found[:, [5, ENTRIES - 1, ENTRIES, last]] == found[:, [70]]).all())


@pytest.mark.parametrize("panels", [False, True])
def test_numbers_that_are_not_finite_stay_in_their_row(panels: bool) -> None:
    """A row of NaN and one of infinities change no other row."""
    head = linear(SIZE + 5, 64)
    unembedding = laid_out(head) if panels else Unembedding(head)
    rows = torch.randn(FEWEST_ROWS, 64, generator=torch.Generator().manual_seed(0))
    expected = product(unembedding, rows)
    rows[3], rows[7] = torch.nan, torch.inf
    found = product(unembedding, rows)
    assert not bool(found[[3, 7]].isfinite().any())
    others = [number for number in range(FEWEST_ROWS) if number not in (3, 7)]
    assert bool((found[others] == expected[others]).all())


def test_threads_share_rows_where_that_pays() -> None:
    """By panels a tile of rows is enough for a thread; torch's own products divide better among its threads when rows are few."""
    head = linear(300, 64)
    plain, ours = Unembedding(head), laid_out(head)
    torch.set_num_threads(2)
    try:
        assert [ours.workers(rows, rows) for rows in (2 * ROWS - 1, 2 * ROWS)] == [1, 2]
        assert [plain.workers(rows, rows) for rows in (2 * FEWEST_ROWS - 1, 2 * FEWEST_ROWS)] == [1, 2]
        assert ours.workers(2 * ROWS, 1) == 1, "the many parts of one token's sum stay together"
        rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(product(ours, rows), product(plain, rows))  # one thread that leaves dividing to torch
    finally:
        torch.set_num_threads(1)


def test_kept_to_what_is_known_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of another kind, other makers, processors that do not multiply and add at once, and no numba keep ``torch.mm``."""

    def taken(dtype: torch.dtype = torch.float32) -> bool:
        unembedding = Unembedding(linear(300, 64, dtype))
        unembedding.try_faster(torch.randn(3, 64))
        return unembedding.panels is not None

    assert taken()
    assert not taken(torch.float16)
    for name, other in (
        ("raylens.workers.product.vendor", lambda: "GenuineIntel"),
        ("raylens.workers.product.vendor", str),
        ("raylens.workers.product.is_compiled", bool),
        ("raylens.workers.kernels.panels.SUPPORTED", False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, other)
            assert not taken()


def test_a_wrong_product_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler may make of it is compared with float64 before it is relied on."""
    monkeypatch.setattr(kernel, "multiply", lambda rows, entries, out: out.fill(1))
    unembedding = Unembedding(linear(300, 64))
    unembedding.try_faster(torch.randn(3, 64))
    assert unembedding.panels is None


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
