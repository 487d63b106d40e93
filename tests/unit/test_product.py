"""Products with the unembedding against float64, by every way that there is here, for any shape; and which way is taken."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from raylens.workers.kernels import panels, tiles
from raylens.workers.kernels.laid_out import Kernel, LaidOut
from raylens.workers.product import FEWEST_ROWS, TRIED, Unembedding, own_kernel

#: Our own products; not every processor multiplies tiles.
KERNELS = [panels.KERNEL, *([tiles.KERNEL] if tiles.may_use() else [])]
#: These, and torch's.
WAYS = [None, *KERNELS]
#: What a panel of any holds at most.
ROWS, ENTRIES = (max(getattr(kernel, name) for kernel in KERNELS) for name in ("rows", "entries"))
each_kernel, each_way = (
    pytest.mark.parametrize("kernel", ways, ids=lambda way: way.name if way else "mm") for ways in (KERNELS, WAYS)
)
TYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
#: Size of blocks: not a whole number of panels.
SIZE = 9 * ENTRIES + 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As each of several threads multiplies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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


def by(kernel: Kernel | None, head: nn.Linear) -> Unembedding:
    """Products by one of the ways."""
    unembedding = Unembedding(head)
    if kernel is not None:
        unembedding.laid_out = LaidOut(head.weight.detach(), kernel)
    return unembedding


@each_way
@given(
    vocabulary=st.integers(1, 21 * ENTRIES),
    width=st.integers(1, 97),
    rows=st.integers(1, 3 * ROWS + 1),
    dtype=TYPES,
)
@example(vocabulary=SIZE + 1, width=97, rows=ROWS, dtype=torch.float32)
@example(vocabulary=2 * ENTRIES, width=64, rows=ROWS - 1, dtype=torch.bfloat16)
@example(vocabulary=40, width=24 * 32 + 1, rows=3, dtype=torch.float32)
@example(vocabulary=66 * 32, width=24 * 32 + 1, rows=3, dtype=torch.float16)
def test_any_way_is_the_product(kernel: Kernel | None, vocabulary: int, width: int, rows: int, dtype: torch.dtype) -> None:
    """Vocabularies that end inside a panel or a block, odd widths, few rows and many."""
    head = linear(vocabulary, width, dtype)
    unembedding = by(kernel, head)
    hidden = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    expected = hidden.double() @ head.weight.double().T
    torch.testing.assert_close(product(unembedding, hidden).double(), expected, rtol=0, atol=1e-5 * width**0.5)


@each_kernel
@given(rows=st.integers(1, 40), first=st.integers(0, 39), dtype=TYPES, size=st.integers(1, 300))
def test_a_product_is_the_same_in_any_company(kernel: Kernel, rows: int, first: int, dtype: torch.dtype, size: int) -> None:
    """By our own products a row's products have the same bits whatever rows it is multiplied with, and in whatever blocks."""
    unembedding = by(kernel, linear(5 * ENTRIES + 7, 75, dtype))
    hidden = torch.randn(40, 75, generator=torch.Generator().manual_seed(1))
    part = slice(first, first + rows)
    assert torch.equal(product(unembedding, hidden[part], size), product(unembedding, hidden)[part])


@each_kernel
@pytest.mark.parametrize("width", [576, 4096])
def test_wide_sums_round_little(kernel: Kernel, width: int) -> None:
    """By our own products no number is one long sum, which would be several times as far from float64 (1.4e-6 and 3.6e-6)."""
    head = linear(200, width)
    head.weight.abs_()  # sums that only grow are rounded most
    rows = torch.rand(60, width, generator=torch.Generator().manual_seed(0)) + 0.5
    exact = rows.double() @ head.weight.double().T
    found = product(by(kernel, head), rows)
    assert float((found / exact - 1).abs().max()) < 1e-6


@each_way
def test_equal_entries_tie(kernel: Kernel | None) -> None:
    """Two tokens of one embedding get the very same product wherever they are, so that the lower id comes first."""
    last = 20 * ENTRIES + 2
    head = linear(last + 1, 75)
    head.weight[[5, ENTRIES - 1, ENTRIES, last]] = head.weight[70].clone()
    rows = torch.randn(FEWEST_ROWS, 75, generator=torch.Generator().manual_seed(0))
    found = product(by(kernel, head), rows)
    assert bool((found[:, [5, ENTRIES - 1, ENTRIES, last]] == found[:, [70]]).all())


@each_way
def test_numbers_that_are_not_finite_stay_in_their_row(kernel: Kernel | None) -> None:
    """A row of NaN and one of infinities change no other row."""
    head = linear(SIZE + 5, 64)
    unembedding = by(kernel, head)
    rows = torch.randn(FEWEST_ROWS, 64, generator=torch.Generator().manual_seed(0))
    expected = product(unembedding, rows)
    rows[3], rows[7] = torch.nan, torch.inf
    found = product(unembedding, rows)
    assert not bool(found[[3, 7]].isfinite().any())
    others = [number for number in range(FEWEST_ROWS) if number not in (3, 7)]
    assert bool((found[others] == expected[others]).all())


@each_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_entries_are_multiplied_as_the_heads_own(kernel: Kernel, dtype: torch.dtype) -> None:
    """So that an error that is measured on some entries is that of what is read; by our own products to the bit."""
    head = linear(301, 75, dtype)
    rows = torch.randn(40, 75, generator=torch.Generator().manual_seed(0))
    some = head.weight.detach()[::3].clone()
    assert torch.equal(by(kernel, head).multiplier(some)(rows), product(by(kernel, head), rows)[:, ::3])
    exact = rows.double() @ some.double().T
    torch.testing.assert_close(by(None, head).multiplier(some)(rows).double(), exact, rtol=0, atol=1e-4)


@each_kernel
def test_torch_may_multiply_between_blocks(kernel: Kernel) -> None:
    """torch's own products of bfloat16 set up the same tiles of the processor as they need them, in the same thread."""
    short = torch.randn(129, 257, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = short @ short.T
    unembedding = by(kernel, linear(3 * SIZE, 75))
    rows = torch.randn(70, 75, generator=torch.Generator().manual_seed(1))
    alone = product(unembedding, rows)
    found = []
    for _, block in unembedding.blocks(rows, SIZE):
        assert torch.equal(short @ short.T, expected)
        found.append(block.clone())
    assert torch.equal(torch.cat(found, dim=1), alone)


@each_kernel
def test_threads_share_rows_where_that_pays(kernel: Kernel) -> None:
    """A panel is enough for a thread of our own products; torch divides its own better among its threads when rows are few."""
    head = linear(300, 64)
    plain, ours = Unembedding(head), by(kernel, head)
    torch.set_num_threads(2)
    try:
        assert [ours.workers(rows, rows) for rows in (2 * kernel.rows - 1, 2 * kernel.rows)] == [1, 2]
        assert [plain.workers(rows, rows) for rows in (2 * FEWEST_ROWS - 1, 2 * FEWEST_ROWS)] == [1, 2]
        assert ours.workers(2 * kernel.rows, 1) == 1, "the many parts of one token's sum stay together"
        rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(product(ours, rows), product(plain, rows))  # one thread that leaves dividing to torch
    finally:
        torch.set_num_threads(1)


def test_kept_to_what_is_known_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles where the processor has them, panels on AMD's, ``torch.mm`` on others, on old ones and without a compiler."""
    monkeypatch.setattr("raylens.workers.product.vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(tiles, "may_use", lambda: True)
    assert own_kernel() is tiles.KERNEL
    monkeypatch.setattr(tiles, "may_use", bool)
    assert own_kernel() is panels.KERNEL
    for name, other in (
        ("raylens.workers.product.vendor", lambda: "GenuineIntel"),
        ("raylens.workers.product.vendor", str),
        ("raylens.workers.kernels.panels.SUPPORTED", False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, other)
            assert own_kernel() is None


@each_kernel
def test_a_product_is_tried_before_it_is_used(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler may make of it is compared with float64; weights of another type, or no compiler, keep ``torch.mm``."""
    monkeypatch.setattr("raylens.workers.product.own_kernel", lambda: kernel)

    def taken(dtype: torch.dtype = torch.float32) -> bool:
        unembedding = Unembedding(linear(300, 64, dtype))
        unembedding.try_faster(torch.randn(3, 64))
        return unembedding.laid_out is not None

    assert taken()
    assert taken(torch.bfloat16)
    assert taken(torch.float16)
    assert not taken(torch.float64)
    for module, name, other in (
        ("raylens.workers.product.is_compiled", None, bool),
        (kernel, "multiply", lambda rows, entries, out: out.fill(1)),
        (kernel, "multiply", lambda rows, entries, out: 1 / 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other) if name else patch.setattr(module, other)
            assert not taken()


@each_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_short_is_laid_out_as_that(kernel: Kernel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that was widened to float32 takes no more memory or products than before, unless one number of it would lose."""
    monkeypatch.setattr("raylens.workers.product.own_kernel", lambda: kernel)
    rows = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(0))

    def tried(head: nn.Linear) -> tuple[Unembedding, int]:
        unembedding = Unembedding(head)
        unembedding.try_faster(rows)
        assert unembedding.laid_out is not None
        return unembedding, unembedding.laid_out.nbytes

    short, size = tried(linear(TRIED + 1, 64, dtype))
    widened, same_size = tried(linear(TRIED + 1, 64, dtype).float())
    assert size == same_size
    assert torch.equal(product(widened, rows), product(short, rows))
    some = widened.head.weight[::3].clone()
    assert torch.equal(widened.multiplier(some)(rows), product(widened, rows)[:, ::3])
    for number in (1 + 2.0**-12, torch.nan):
        widened.head.weight[TRIED, 63] = number
        assert tried(widened.head)[1] == LaidOut(widened.head.weight, kernel).nbytes >= size


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
