"""The compiled read-out against the plain one and float64: the same checks, on whatever the plain one is checked with."""

import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from raylens.workers.after_head import AfterHead
from raylens.workers.kernels import epilogue
from raylens.workers.projection import Projection
from raylens.workers.running import MOST_KEPT, CompiledReadout, is_compiled, not_compiled, running_readout
from raylens.workers.threads import each
from raylens.workers.topk import Readout, RunningReadout
from tests.unit.test_topk import check, logits_of_all_kinds, random_logits
from tests.unit.test_topk import cut as plain_cut
from tests.waiting import wait_until

CPU = torch.device("cpu")


def cut(logits: Tensor, places: list[int], k: int) -> Readout:
    """The compiled read-out of blocks of the vocabulary that end at the places."""
    running = CompiledReadout(logits.shape[0], k)
    for block in torch.tensor_split(logits, sorted({place for place in places if 0 < place < logits.shape[1]}), dim=1):
        running.add(block)
    return running.finish()


@given(logits_of_all_kinds, st.integers(1, 300), st.lists(st.integers(1, 299), max_size=6))
@example(random_logits(3, 300, 5, 1.0, 0, 0.0), 10, [100, 200])
@example(random_logits(3, 300, 5, 1.0, 0, 0.0), 300, [])
@example(random_logits(1, 1, 5, 1.0, 0, 0.0), 1, [])
@example(random_logits(3, 17, 5, 1.0, 0, 0.3), 17, [1, 2, 3])
def test_any_partition_against_float64(logits: Tensor, k: int, places: list[int]) -> None:
    """Ids as a stable sort gives them and numbers as float64 gives them, for any k, blocks, ties and impossible tokens."""
    k = min(k, logits.shape[1])
    found, plain = cut(logits, places, k), plain_cut(logits, places, k)
    check(found, logits, k)
    assert found.ids.equal(plain.ids)
    largest = max(1.0, float(logits[logits.isfinite()].abs().max()))
    for name in ("logprobs", "logsumexp", "entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-6, atol=2e-6 * largest)


def test_large_vocabulary_in_uneven_blocks() -> None:
    """A vocabulary that is no multiple of the block, as in use, to 1e-6 of logsumexp and 1e-5 of entropy."""
    logits = random_logits(9, 50_007, 3, 5.0, None, 0.0)
    check(cut(logits, list(range(1024, 50_007, 1024)), 10), logits, 10)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("places", [[], [4], [1, 2, 3], [11]])
def test_equal_rows_take_the_lowest_ids(k: int, places: list[int]) -> None:
    """Where all logits are equal the ids are 0 to k-1, in order, across any block edge."""
    assert cut(torch.full((3, 12), 1.5), places, k).ids.tolist() == [list(range(k))] * 3


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("places", [[], [2], [1, 2, 3, 4]])
@pytest.mark.parametrize("place", range(5))
def test_numbers_that_are_no_logits_show(bad: float, places: list[int], place: int) -> None:
    """NaN of either sign or infinity anywhere in a row makes its entropy not finite, and no other row's."""
    logits = torch.zeros(2, 5)
    logits[1, place] = bad
    assert cut(logits, places, 2).entropy.isfinite().tolist() == [True, False]


def test_certain_impossible_and_no_tokens() -> None:
    """Probability 1 has logprob and entropy 0, impossible tokens follow by id, and a row of them only shows."""
    logits = torch.full((2, 6), -torch.inf)
    logits[0, 4] = 7.0
    for places in ([], [3], [1, 2, 5]):
        found = cut(logits, places, 3)
        assert found.ids.tolist() == [[4, 0, 1], [0, 1, 2]]
        assert found.logprobs[0].tolist() == [0.0, -np.inf, -np.inf]
        assert (found.logsumexp[0].item(), found.entropy[0].item()) == (7.0, 0.0)
        assert not found.logsumexp[1].isfinite()


def test_blocks_that_are_not_contiguous() -> None:
    """A block that is a view into wider logits is read as what it shows."""
    logits = random_logits(4, 200, 1, 2.0, None, 0.0)
    running = CompiledReadout(4, 5)
    running.add(logits[:, ::2])
    check(running.finish(), logits[:, ::2], 5)


def test_own_exponential() -> None:
    """exp is right to a few units in the last place as far as normal numbers go, 0 below, and NaN of NaN."""
    for y in np.linspace(-87, 0, 4001, dtype=np.float32):
        assert abs(epilogue.exp(y) / math.exp(float(y)) - 1) < (4e-7 if y < -20 else 2.1e-7)
    assert epilogue.exp(np.float32(0)) == 1.0
    for y in np.linspace(-89, -87, 101, dtype=np.float32):
        assert abs(epilogue.exp(y) - math.exp(float(y))) < 1e-38
    for y in (-88, -1e9, -np.inf):
        assert epilogue.exp(np.float32(y)) == 0.0
    assert np.isnan(epilogue.exp(np.float32(np.nan)))


def test_which_form_reads() -> None:
    """Compiled code reads ordinary k on the CPU; a very large k and other devices are left to the plain form."""
    assert is_compiled()
    assert isinstance(running_readout(2, 10, CPU), CompiledReadout)
    assert isinstance(running_readout(2, MOST_KEPT + 1, CPU), RunningReadout)
    assert isinstance(running_readout(2, 10, torch.device("meta")), RunningReadout)


def test_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba cannot be imported the plain form reads, and the certificate says why."""
    projection = Projection(nn.Identity(), nn.Linear(8, 30), AfterHead())
    assert "not compiled" not in projection.path(10)
    not_compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "raylens.workers.kernels.epilogue", None)
    monkeypatch.delattr("raylens.workers.kernels.epilogue")
    assert isinstance(running_readout(2, 10, CPU), RunningReadout)
    assert "not compiled (" in projection.path(10)
    not_compiled.cache_clear()


def test_where_nothing_is_compiled() -> None:
    """NUMBA_DISABLE_JIT, which people set to debug other code, leaves loops that nobody could wait for; the plain form reads."""
    code = (
        "import torch; from raylens.workers.running import *; "
        "print(type(running_readout(2, 10, torch.device('cpu'))).__name__, not_compiled())"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "RunningReadout NUMBA_DISABLE_JIT is set\n"


def test_threads_of_our_own() -> None:
    """Parts come back in order, each thread multiplies alone, and torch elsewhere keeps the threads it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert each(lambda part: (part, torch.get_num_threads()), range(5), 2) == [(part, 1) for part in range(5)]
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
        with pytest.raises(ZeroDivisionError):
            each(lambda part: 1 // part, [1, 0], 2)
    finally:
        torch.set_num_threads(before)


def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where a container allows no more of them, those that have started end, and so does the process."""
    start, before = threading.Thread.start, threading.active_count()

    def refuse_the_second(thread: threading.Thread) -> None:
        if threading.active_count() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            each(str, range(9), 7)
        wait_until(lambda: threading.active_count() == before, "the threads have ended")
    assert caplog.messages == []


def test_numba_is_not_imported_before_it_is_used() -> None:
    """Importing the package, and the worker, does not wait for numba."""
    code = "import sys, raylens, raylens.workers.worker; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
