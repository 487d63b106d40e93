"""The Triton read-out against float64 and against its plain twin: by the interpreter on a CPU, compiled where there is a GPU.

On a machine with a GPU the same tests run compiled; there ``TRITON_INTERPRET=1`` brings back the interpreter.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raylens.workers.asked import Asked, Final, Tally
from tests.unit.test_lens import built

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported
pytest.importorskip("triton", reason="triton is not installed; on Linux: pip install triton")

import triton

from raylens.workers import after_head, fused, topk
from raylens.workers.fused import ALLOWED, try_fused
from raylens.workers.kernels import triton_readout
from raylens.workers.kernels.triton_readout import AfterHead, readout
from raylens.workers.projection import Projection
from raylens.workers.running import MOST_FUSED
from raylens.workers.terms import split_terms
from raylens.workers.topk import Readout

NUMBERS = ("ids", "logprobs", "logsumexp", "entropy")
COMPILED = os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = "cuda" if COMPILED else "cpu"
pytestmark = [
    *([pytest.mark.cuda] if COMPILED else []),
    # the interpreter counts with numpy, which warns of infinity and NaN
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
needs_gpu = [pytest.mark.cuda, pytest.mark.skipif(not COMPILED, reason="no NVIDIA GPU here")]

SHORT = [torch.bfloat16, torch.float16]
#: What is left of a number after two terms of the type, as a share of it; float32 sums take the rest.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-17, torch.float16: 2.0**-23}
STEPS = [AfterHead(), AfterHead(cap=5.0), AfterHead(factor=0.25), AfterHead(factor=-2.0)]


def case(
    n: int, vocab: int, width: int, seed: int, dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random rows [N, D], weight [V, D] and bias [V] on the device under test; logits have a spread of about 3."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, width, generator=generator)
    weight = (torch.randn(vocab, width, generator=generator) * 3 / width**0.5).to(dtype)
    offset = torch.randn(vocab, generator=generator).to(dtype) if bias else None
    return rows.to(DEVICE), weight.to(DEVICE), None if offset is None else offset.to(DEVICE)


def whole_numbers(n: int, vocab: int, width: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A case whose logits are small whole numbers, exact in every type, so that nearly all of them tie."""
    generator = torch.Generator().manual_seed(seed)
    rows, weight, bias = (torch.randint(-1, 2, shape, generator=generator) for shape in ((n, width), (vocab, width), (vocab,)))
    return rows.float().to(DEVICE), weight.to(dtype).to(DEVICE), bias.to(dtype).to(DEVICE)


def exact_logits(rows: Tensor, weight: Tensor, bias: Tensor | None, step: AfterHead) -> Tensor:
    """[N, V] float64."""
    logits = rows.double() @ weight.double().T + (0 if bias is None else bias.double())
    return step(logits)


def allowed(rows: Tensor, weight: Tensor, step: AfterHead) -> float:
    """The largest error of a logit that the docstring's bound allows, with float32 sums beside it."""
    terms = float((rows.double().abs() @ weight.double().abs().T).max())
    slope = abs(step.factor)
    return slope * (terms * (ROUNDING[weight.dtype] + 8 * 2.0**-24) + 1e-6) + 1e-6 * abs(step.cap or step.factor)


def check(found: Readout, rows: Tensor, weight: Tensor, bias: Tensor | None, step: AfterHead, k: int) -> None:
    """Against float64: numbers to the bound; ids are a top k of logits that are off by no more than the bound."""
    assert [getattr(found, field).dtype for field in NUMBERS] == [torch.int64] + [torch.float32] * 3
    assert found.ids.shape == found.logprobs.shape == (len(rows), k)
    logits, error = exact_logits(rows, weight, bias, step), allowed(rows, weight, step)
    exact = torch.log_softmax(logits, dim=1)
    assert all(len(set(ids)) == k for ids in found.ids.tolist())
    best = torch.sort(logits, dim=1, descending=True).values[:, :k]
    assert float((logits.gather(1, found.ids) - best).abs().max()) <= 2 * error
    assert float((found.logprobs - exact.gather(1, found.ids)).abs().max()) <= 2 * error
    assert bool((found.logprobs <= 0).all())
    assert bool((found.logprobs.diff(dim=1) <= 0).all())
    assert float((found.logsumexp - logits.logsumexp(dim=1)).abs().max()) <= error
    entropy = -torch.special.xlogy(exact.exp(), exact.exp()).sum(dim=1)
    spread = float(logits.max() - logits.min())
    assert float((found.entropy - entropy).abs().max()) <= 1e-5 + 2 * error * (1 + spread)


def same(found: Readout, plain: Readout, tolerance: float) -> None:
    """The twin's ids exactly and its numbers to the tolerance."""
    assert found.ids.equal(plain.ids)
    for name in ("logprobs", "logsumexp", "entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_against_float64(dtype: torch.dtype, step: AfterHead) -> None:
    """Every dtype and step, with sizes that are no multiple of any block."""
    inputs = case(19, 203, 37, 1, dtype)
    check(readout(*inputs, step, 7), *inputs, step, 7)


@pytest.mark.parametrize(
    ("n", "vocab", "width", "k"), [(1, 1, 1, 1), (1, 65, 16, 1), (16, 64, 32, 64), (17, 33, 5, 33), (3, 40, 48, 17)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(n: int, vocab: int, width: int, k: int, dtype: torch.dtype) -> None:
    """One row, one token, exact multiples, one past them, k of 1, of the whole vocabulary and of 64; with and without a bias."""
    for bias in (True, False):
        inputs = case(n, vocab, width, 2, dtype, bias)
        check(readout(*inputs, AfterHead(), k), *inputs, AfterHead(), k)


@settings(max_examples=15)
@given(
    st.integers(1, 20), st.integers(1, 150), st.sampled_from([1, 16, 23]), st.integers(0, 2**31),
    st.sampled_from(list(ROUNDING)), st.sampled_from(STEPS), st.sampled_from([1, 3, 16, 17, 64]),
)  # fmt: skip
def test_any_case(n: int, vocab: int, width: int, seed: int, dtype: torch.dtype, step: AfterHead, k: int) -> None:
    """Any small case against float64."""
    k = min(k, vocab)
    inputs = case(n, vocab, width, seed, dtype, bias=bool(seed % 2))
    check(readout(*inputs, step, k), *inputs, step, k)


@settings(max_examples=15)
@given(
    st.integers(1, 20), st.integers(1, 150), st.sampled_from([1, 4, 17]), st.integers(0, 2**31),
    st.sampled_from(list(ROUNDING)), st.sampled_from([1, 3, 16, 17, 64]),
)  # fmt: skip
def test_ties_as_the_twin(n: int, vocab: int, width: int, seed: int, dtype: torch.dtype, k: int) -> None:
    """Where nearly all logits tie, over any edge of tiles and parts, ids are the plain twin's: the lower ids, in order."""
    k = min(k, vocab)
    rows, weight, bias = whole_numbers(n, vocab, width, seed, dtype)
    logits = exact_logits(rows, weight, bias, AfterHead()).float()
    same(readout(rows, weight, bias, AfterHead(), k), topk.readout(logits, k), 2e-6)


@settings(max_examples=15)
@given(
    st.integers(1, 20), st.integers(2, 150), st.sampled_from([1, 4, 17]), st.integers(0, 2**31), st.sampled_from(list(ROUNDING)),
    st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_what_is_asked_as_the_twin(
    n: int, vocab: int, width: int, seed: int, dtype: torch.dtype, count: int, compared: bool
) -> None:
    """Ranks and logprobs of targets where nearly all logits tie, and sums with other probabilities, are the plain twin's."""
    rows, weight, bias = whole_numbers(n, vocab, width, seed, dtype)
    logits = exact_logits(rows, weight, bias, AfterHead()).float()
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab, (n, count), generator=generator)
    token = torch.arange(n) // 2
    final = Final(rows[: token[-1] + 1], *torch.zeros(2, token[-1] + 1, device=DEVICE)) if compared else None
    probabilities = torch.rand(int(token[-1]) + 1, vocab, generator=generator).to(DEVICE) if compared else None
    tallies = [Tally(Asked(targets, token, final), logits.gather(1, targets.to(DEVICE))) for _ in range(2)]
    for tally in tallies:
        tally._mass += 1
    plain = topk.RunningReadout(n, 1, logits.device, tallies[1])
    plain.add(logits, probabilities)
    expected = plain.finish()
    found = readout(rows, weight, bias, AfterHead(), 1, tallies[0], probabilities)
    assert found.target_ranks.equal(expected.target_ranks)
    torch.testing.assert_close(found.target_logprobs, expected.target_logprobs, rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(found.kl, expected.kl, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("k", [1, 10, 64])
def test_all_equal(k: int) -> None:
    """Zeros of both signs, here by underflow, are equal: ids 0 to k-1."""
    rows, weight = torch.ones(3, 4, device=DEVICE), torch.zeros(300, 4, device=DEVICE)
    bias = torch.tensor([-1e-30, 1e-30], device=DEVICE).repeat(150)
    found = readout(rows, weight, bias, AfterHead(factor=1e-30), k)
    assert found.ids.tolist() == [list(range(k))] * 3
    torch.testing.assert_close(found.entropy, torch.full((3,), 300.0, device=DEVICE).log())


def test_ascending_and_descending_logits() -> None:
    """The most survivors there can be, where every token beats all before it, and the fewest."""
    rows = torch.tensor([[1.0], [-1.0]], device=DEVICE)
    weight = torch.arange(300.0, device=DEVICE).unsqueeze(1) / 8
    found = readout(rows, weight, None, AfterHead(), 20)
    assert found.ids.tolist() == [list(range(299, 279, -1)), list(range(20))]
    same(found, topk.readout(rows @ weight.T, 20), 1e-5)


def test_impossible_tokens() -> None:
    """A bias of minus infinity: probability 0, listed by id once nothing else is left; whole tiles of them change nothing."""
    rows, weight = torch.ones(2, 4, device=DEVICE), torch.zeros(200, 4, device=DEVICE)
    bias = torch.full((200,), -torch.inf, device=DEVICE)
    bias[[70, 199]] = torch.tensor([1.0, 2.0], device=DEVICE)
    found = readout(rows, weight, bias, AfterHead(), 4)
    assert found.ids.tolist() == [[199, 70, 0, 1]] * 2
    same(found, topk.readout(bias.repeat(2, 1), 4), 1e-6)
    none = readout(rows, weight, torch.full((200,), -torch.inf, device=DEVICE), AfterHead(), 4)
    assert none.ids.tolist() == [[0, 1, 2, 3]] * 2
    assert not none.logsumexp.isfinite().any()


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 18])
def test_rows_that_are_no_numbers_show(bad: float, place: int, dtype: torch.dtype) -> None:
    """A row with NaN or infinity has a statistic that is not finite, ids in range, and no effect on other rows."""
    rows, weight, bias = case(19, 70, 20, 3, dtype)
    clean = readout(rows, weight, bias, AfterHead(), 5)
    rows[place, 7] = bad
    found = readout(rows, weight, bias, AfterHead(), 5)
    finite = found.logsumexp.isfinite() & found.entropy.isfinite()
    assert finite.tolist() == [row != place for row in range(19)]
    assert found.ids.min() >= 0
    assert found.ids.max() < 70
    for field in NUMBERS:
        assert getattr(found, field)[finite].equal(getattr(clean, field)[finite])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_logit_that_is_no_number_shows(bad: float) -> None:
    """NaN or infinity in one logit, in the last part of the vocabulary, makes the entropy not finite."""
    rows, weight, _ = case(2, 130, 16, 4)
    bias = torch.zeros(130, device=DEVICE)
    bias[129] = bad
    assert not readout(rows, weight, bias, AfterHead(), 3).entropy.isfinite().any()


def test_ids_are_in_range_whatever_the_nan() -> None:
    """NaN whose bits are all ones, which orders below everything, is listed all the same."""
    rows, weight = torch.ones(2, 4, device=DEVICE), torch.zeros(70, 4, device=DEVICE)
    bias = torch.full((70,), -1, dtype=torch.int32, device=DEVICE).view(torch.float32)
    found = readout(rows, weight, bias, AfterHead(), 5)
    assert found.ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert not found.entropy.isfinite().any()


@pytest.mark.parametrize("dtype", SHORT)
def test_two_terms_give_rows_back(dtype: torch.dtype) -> None:
    """hi + lo is the row to the bound, for small and large rows; one term alone is far from it."""
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(5)) * torch.logspace(-30, 36, 40).unsqueeze(1)
    rows[7] = 0
    first, second, factor = split_terms(rows, dtype)
    assert first.dtype == second.dtype == dtype
    size = rows.abs().amax(dim=1, keepdim=True).double().clamp(min=1e-30)
    one = first.double() * factor.double().unsqueeze(1)
    both = one + second.double() * factor.double().unsqueeze(1)
    assert float(((both - rows) / size).abs().max()) <= ROUNDING[dtype]
    assert float(((one - rows) / size).abs().max()) > 50 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_gpu), torch.float16])
def test_terms_in_one_pass(dtype: torch.dtype) -> None:
    """The very numbers of split_terms, for rows of any size; rows that are no numbers stay none."""
    rows = torch.randn(50, 40, generator=torch.Generator().manual_seed(6)) * torch.logspace(-29, 36, 50).unsqueeze(1)
    rows[9, 3], rows[11, 2] = torch.inf, torch.nan
    rows = rows.to(DEVICE)
    found, expected = triton_readout.terms(rows, dtype), split_terms(rows, dtype)
    numbers = rows.isfinite().all(dim=1)
    assert all(one[numbers].equal(other[numbers]) for one, other in zip(found, expected, strict=True))
    assert not found[0][~numbers].isfinite().all(dim=1).any()


def test_small_and_large_rows_in_float16() -> None:
    """Rows far below and above float16's range keep their precision: each has its own power of two."""
    rows, weight, _ = case(6, 90, 24, 6, torch.float16, bias=False)
    scales = torch.tensor([1e-30, 1e-6, 1.0, 1e3, 1e5, 1e34], device=DEVICE).unsqueeze(1)
    logits = exact_logits(rows, weight, None, AfterHead())
    found = readout(rows * scales, weight, None, AfterHead(), 3)
    assert found.ids[1:].equal(torch.topk(logits, 3).indices[1:])
    assert bool(found.entropy.isfinite().all())
    torch.testing.assert_close(
        found.logprobs[:, 2] - found.logprobs[:, 0],
        ((logits.topk(3).values[:, 2] - logits.topk(3).values[:, 0]) * scales[:, 0]).float(),
        rtol=1e-5,
        atol=2e-6,
    )


def test_many_rows_and_a_weight_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several launches, the last one short; a weight and rows that are views of larger ones."""
    monkeypatch.setattr("raylens.workers.kernels.triton_readout._ROW_TILE", 16)
    rows, weight, bias = case(37, 50, 40, 7)
    inputs = rows[:, 3:30], weight[:, 5:32], bias
    check(readout(*inputs, AfterHead(), 4), *inputs, AfterHead(), 4)
    assert readout(rows[:0], weight, bias, AfterHead(), 4).ids.shape == (0, 4)


def test_steps_of_the_configuration() -> None:
    """Every step that a configuration may name is one the kernel knows, and gives what the step's own function gives."""

    class Config:
        final_logit_softcapping, logit_scale, logits_scaling = 2.0, 0.5, 4.0

        def get_text_config(self) -> "Config":
            return self

    inputs = case(4, 40, 16, 8)
    found = list(after_head.candidate_steps(Config()))
    assert len(found) == 5
    for _, step in found:
        plain = topk.readout(step(exact_logits(*inputs, AfterHead()).float()), 5)
        same(readout(*inputs, step, 5), plain, 1e-5)


WRONG: list[tuple[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, int]]]] = [
    ("rows must be", lambda rows, weight, bias: (rows.double(), weight, bias, 1)),
    ("rows must be", lambda rows, weight, bias: (rows[0], weight, bias, 1)),
    ("weight must be", lambda rows, weight, bias: (rows, weight.double(), bias, 1)),
    ("weight must be", lambda rows, weight, bias: (rows, weight[:, 1:], bias, 1)),
    ("weight must be", lambda rows, weight, bias: (rows, weight[:0], bias[:0], 1)),
    ("contiguous", lambda rows, weight, bias: (rows, weight.T.contiguous().T, bias, 1)),
    ("bias must be", lambda rows, weight, bias: (rows, weight, bias[1:], 1)),
    ("bias must be", lambda rows, weight, bias: (rows, weight, bias.int(), 1)),
    ("k must be 1 to 64", lambda rows, weight, bias: (rows, weight, bias, 0)),
    ("k must be 1 to 64", lambda rows, weight, bias: (rows, weight, bias, 65)),
    ("k must be 1 to 9", lambda rows, weight, bias: (rows, weight[:9], bias[:9], 10)),
    ("one device", lambda rows, weight, bias: (rows.to("meta"), weight, bias, 1)),
]


@pytest.mark.parametrize(("message", "change"), WRONG)
def test_arguments_that_do_not_fit(message: str, change: Callable[..., tuple[Tensor, Tensor, Tensor, int]]) -> None:
    """Each is refused by name before anything is launched."""
    rows, weight, bias = case(3, 70, 8, 9)
    assert bias is not None
    *inputs, k = change(rows, weight, bias)
    with pytest.raises(ValueError, match=message):
        readout(*inputs, AfterHead(), k)


def test_wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels on CPU tensors, or the interpreter on a GPU's, are refused in words."""
    monkeypatch.setattr("raylens.workers.kernels.triton_readout._interpreted", lambda: COMPILED)
    with pytest.raises(ValueError, match="compiled kernels need a GPU"):
        readout(*case(2, 5, 4, 12), AfterHead(), 1)


@pytest.mark.parametrize("step", [AfterHead(cap=torch.inf), AfterHead(factor=torch.nan), AfterHead(0.0), AfterHead(2.0, 5.0)])
def test_steps_that_do_not_fit(step: AfterHead) -> None:
    """A cap or factor of zero, infinity or NaN is refused, and both at once."""
    with pytest.raises(ValueError, match="no such step"):
        readout(*case(2, 5, 4, 12), step, 1)


#: The launch as the read-out makes it, with a driver that only names a GPU, and the kernel compiled instead of run.
_COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from raylens.workers.asked import Asked
from raylens.workers.kernels import triton_readout as host
from raylens.workers.kernels.readout_kernel import readout_kernel as kernel

class Driver:
    get_current_device = get_current_stream = staticmethod(lambda *device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", {arch}, 32))

class Compiler:
    def __getitem__(self, grid):
        return lambda *args, **options: texts.append(kernel.run(*args, grid=grid, warmup=True, **options).asm["ptx"])

texts = []
triton.runtime.driver.set_active(Driver())
host.kernels.readout_kernel = Compiler()
host._interpreted, host.terms = lambda: False, host.split_terms
host._launcher = lambda *sizes: host.Fixed(**host.SHAPES[{shape}].all_kwargs())
for rows, width, step in (5, 512, host.AfterHead(cap=30.0)), (1, 203, host.AfterHead()):
    weight = torch.zeros(1031, width, dtype=torch.{dtype})
    bias, tally, probabilities = weight[:, 0].contiguous(), host.nothing_asked(rows, weight.device), None
    if rows == 1:
        asked = Asked(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), None)
        bias, tally, probabilities = None, host.Tally(asked, torch.zeros(1, 2)), torch.zeros(1, 1031)
    host._launched(torch.zeros(rows, width), weight, bias, step, rows, tally, probabilities)
for text in texts:
    print("wgmma" in text, "mma.sync" in text, "tf32" in text)
"""


@pytest.mark.parametrize(
    ("dtype", "arch", "shape", "units"),
    [
        ("bfloat16", 90, 0, "True False False"),
        ("float16", 80, 1, "False True False"),
        ("float32", 90, 3, "True False True"),
    ],
)
def test_it_compiles(dtype: str, arch: int, shape: int, units: str) -> None:
    """The compiler takes the launch without a GPU; all types use matrix units; only float32, in three products, those of tf32."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = _COMPILE.format(dtype=dtype, arch=arch, shape=shape)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [units] * 2


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=needs_gpu) for dtype in ROUNDING])
@pytest.mark.parametrize("k", [10, 64])
def test_real_sizes_on_a_gpu(dtype: torch.dtype, k: int) -> None:
    """A real width and vocabulary, every block shape's edges, against float64; twice the same, so that no race shows."""
    inputs = case(300, 49_157, 1000, 10, dtype)
    found = readout(*inputs, AfterHead(cap=30.0), k)
    check(found, *inputs, AfterHead(cap=30.0), k)
    for _ in range(3):
        again = readout(*inputs, AfterHead(cap=30.0), k)
        assert all(getattr(again, field).equal(getattr(found, field)) for field in NUMBERS)


@pytest.mark.parametrize("shape", [pytest.param(shape, marks=needs_gpu) for shape in range(len(triton_readout.SHAPES))])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("k", [10, 64])
def test_every_block_shape_on_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: int, k: int) -> None:
    """Random logits and ties, off every edge, with each block shape; one that does not fit this GPU is never chosen."""
    fixed = triton_readout.Fixed(**triton_readout.SHAPES[shape].all_kwargs())
    monkeypatch.setattr(triton_readout, "_launcher", lambda *_: fixed)
    inputs = case(131, 1031, 200, 12, dtype)
    ties = whole_numbers(131, 1031, 33, 13, dtype)
    try:
        found = readout(*inputs, AfterHead(), k)
    except triton.runtime.OutOfResources:
        pytest.skip("does not fit this GPU")
    check(found, *inputs, AfterHead(), k)
    same(readout(*ties, AfterHead(), k), topk.readout(exact_logits(*ties, AfterHead()).float(), k), 4e-6)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_gpu)])
def test_no_logits_in_memory_on_a_gpu(dtype: torch.dtype) -> None:
    """Peak memory beyond the inputs is a small part of what [N, V] logits would take."""
    rows, weight, bias = case(4096, 100_000, 256, 11, dtype)
    readout(rows, weight, bias, AfterHead(), 10)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    readout(rows, weight, bias, AfterHead(), 10)
    assert torch.cuda.max_memory_allocated() - before < 4096 * 100_000 * 4 / 20


def projection_of(name: str) -> tuple[Projection, Tensor]:
    """A model's read-out by block, not that of the cached adapter, and some hidden rows."""
    model, adapter = built(name, DEVICE)
    rows = torch.randn(40, model.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = adapter.projection
    return Projection(found.norm, found.head, found.step), rows


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gptj"])
def test_kernel_is_measured_when_a_model_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial reads a model's own rows both ways, finds them equal, and says how fast each was."""
    if not COMPILED:  # the interpreter is slow
        monkeypatch.setattr("raylens.workers.fused.ROWS", 48)
    projection, rows = projection_of(name)
    said = try_fused(projection, rows)
    error = float(re.fullmatch(r"Triton kernel: off by (\S+) from the product by block, \S+ times as fast", said)[1])  # type: ignore[index]
    assert error < ALLOWED
    if not COMPILED:
        assert not projection.fused
        assert projection.path(10).startswith("float32 product by vocabulary block")


def by_clock(projection: Projection, rows: Tensor, k: int) -> tuple[Readout, float]:
    """As a trial where the kernel is the faster way, which the interpreter is not."""
    return projection.read(rows, k), 1.0 if projection.fused else 2.0


def test_kernel_that_is_right_and_faster_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it reads whatever it can, what is asked beyond the best tokens too; more tokens are read by block as before."""
    monkeypatch.setattr(fused, "_timed", by_clock)
    monkeypatch.setattr(fused, "ROWS", 48)
    projection, rows = projection_of("llama")
    many = projection.read(rows, MOST_FUSED + 1)
    asked = Asked.of_tokens(many.ids[:, [0, MOST_FUSED]].cpu(), Final(rows.flip(0), many.logsumexp.flip(0), many.entropy.flip(0)))
    expected = projection.read(rows, 10, asked)
    assert try_fused(projection, rows).endswith("2.00 times as fast")
    assert projection.fused
    assert "Triton" in projection.path(10)
    assert "Triton" not in projection.path(MOST_FUSED + 1)
    found = projection.read(rows, 10, asked)
    same(found, expected, ALLOWED)
    assert found.target_ranks.equal(expected.target_ranks)
    for name in ("target_logprobs", "kl"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=ALLOWED)
    assert projection.read(rows, MOST_FUSED + 1).logprobs.equal(many.logprobs)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda read: read._replace(logprobs=read.logprobs - 0.01),
        lambda read: read._replace(ids=read.ids.flip(1)),
        lambda read: read._replace(entropy=read.entropy * torch.nan),
        lambda read: read._replace(target_ranks=read.target_ranks + 10),
        lambda read: read._replace(kl=read.kl + 0.01),
    ],
)
def test_kernel_that_is_wrong_is_not_used(spoil: Callable[[Readout], Readout], monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast, and whichever number it is that is wrong."""
    monkeypatch.setattr(fused, "_timed", by_clock)
    monkeypatch.setattr(fused, "ROWS", 48)
    projection, rows = projection_of("llama")
    monkeypatch.setattr(triton_readout, "readout", lambda rows, **options: spoil(readout(rows, **options)))
    try_fused(projection, rows)
    assert not projection.fused


@pytest.mark.parametrize(("k", "used"), [(1, True), (10, True), (50, False), (MOST_FUSED + 1, True)])
def test_kernel_is_tried_with_the_tokens_that_will_be_kept(k: int, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is right for short lists only, it is not used for long ones; more than it can keep are never read by it."""
    monkeypatch.setattr(fused, "_timed", by_clock)
    monkeypatch.setattr(fused, "ROWS", 48)
    projection, rows = projection_of("llama")

    def short(rows: Tensor, k: int, **options: Any) -> Readout:
        if k > 16:
            raise RuntimeError("out of resource: shared memory")
        return readout(rows, k=k, **options)

    monkeypatch.setattr(triton_readout, "readout", short)
    said = try_fused(projection, rows, k)
    assert projection.fused == used, said


def test_kernel_that_breaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the certificate says why."""
    projection, rows = projection_of("llama")
    right = projection.read(rows, 10)

    def broken(*_: object, **__: object) -> Readout:
        raise RuntimeError("no kernel image\nfor this device")

    monkeypatch.setattr(triton_readout, "readout", broken)
    assert try_fused(projection, rows) == "the Triton kernel does not run here: RuntimeError: no kernel image for this device"
    assert not projection.fused
    assert projection.read(rows, 10).ids.equal(right.ids)
