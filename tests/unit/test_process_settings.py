"""What a program has set in torch or numpy for itself changes nothing of a lens, and is as it was afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from raylens.storage.record import Prompt, Record
from raylens.workers.interventions.edits import read_edits
from raylens.workers.settings import GenerationSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.models import save
from tests.tiny import save_word_llama
from tests.unit.test_fitting import LAYERS, fit, settings_of, taken

TEXTS = [[5, 6, 7, 8], [5, 6, 9], [10, 11, 12, 20, 21]]
CUDA, CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


@contextmanager
def changed(read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def precision(place: Any, value: str) -> Any:
    return changed(lambda: place.fp32_precision, lambda new: setattr(place, "fp32_precision", new), value)


#: What programs set, each open for as long as it holds.
SET = {
    "nothing": lambda: changed(int, lambda _: None, None),
    "float64": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "products": lambda: changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "products of a GPU": lambda: precision(CUDA, "tf32"),
    "products of a CPU": lambda: precision(CPU, "bf16"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "numpy": lambda: np.errstate(all="raise"),
}


def state() -> tuple[Any, ...]:
    """All settings that ``SET`` changes."""
    try:
        for_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # where a newer setting says otherwise
        for_all = "mixed"
    types = (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"))
    return (
        *types,
        for_all,
        CUDA.fp32_precision,
        CPU.fp32_precision,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        np.geterr(),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def lensed(folder: Path, kind: str) -> list[Record]:
    """The records of a new worker."""
    edits = read_edits({"edits": [{"tap": "mlp_out", "layers": 0, "positions": "last", "scale": 2.0}]})
    more: dict[str, Any] = {"edited": {"edits": edits}, "generated": {"generation": GenerationSettings(3, 1e-3)}}.get(kind, {})
    stats = () if kind == "generated" else ("kl", "next_attribution")
    lens = LensSettings(positions="last" if more else "all", logprobs="float32", stats=stats, heads=None if more else "all")
    found = list(Worker(WorkerSettings(ModelSettings(str(folder)), lens, **more)).run(prompts()))
    assert all(isinstance(one, Record) for one in found), found
    return [one for one in found if isinstance(one, Record)]


def prompts() -> list[Prompt]:
    return [Prompt(number, f"p{number}", token_ids=ids) for number, ids in enumerate(TEXTS)]


@pytest.mark.parametrize("name", SET)
@pytest.mark.parametrize("kind", ["plain", "edited", "generated"])
def test_a_lens_is_the_same_whatever_is_set(folder: Path, kind: str, name: str) -> None:
    expected = lensed(folder, kind)
    with SET[name]():
        before = state()
        found = lensed(folder, kind)
        assert state() == before
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, list(one.taps)) == (other.token_ids, list(other.taps))
        for tap, values in one.taps.items():
            for field in ("ids", "logprobs", "logsumexp", "entropy"):
                np.testing.assert_array_equal(getattr(values, field), getattr(other.taps[tap], field))
            for stat, numbers in values.stats.items():
                np.testing.assert_array_equal(numbers, other.taps[tap].stats[stat])


@pytest.mark.parametrize("name", SET)
def test_a_model_runs_with_nothing_set(folder: Path, name: str) -> None:
    """Products too, whose precision no number of this machine may show."""
    seen: set[tuple[Any, ...]] = set()

    def look(_module: nn.Module, _args: Any) -> None:
        types = (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"))
        seen.add((*types, torch.get_float32_matmul_precision(), CUDA.fp32_precision, CPU.fp32_precision))

    hook = register_module_forward_pre_hook(look)
    try:
        with SET[name]():
            lensed(folder, "plain")
    finally:
        hook.remove()
    assert seen == {(torch.float32, torch.device("cpu"), False, "highest", "ieee", "ieee")}


@pytest.mark.parametrize("name", ["bfloat16", "device", "autocast", "products"])
def test_a_fit_is_the_same_whatever_is_set(tmp_path: Path, name: str) -> None:
    model = save_word_llama(tmp_path, LAYERS)
    texts = taken(model)
    expected = fit(settings_of(model), texts)
    with SET[name]():
        before = state()
        found = fit(settings_of(model), texts)
        assert state() == before
    assert found.reports == expected.reports
    for place, arrays in expected.maps.items():
        for array, other in zip(arrays, found.maps[place], strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("name", ["products", "products of a GPU"])
def test_float32_products_of_a_gpu_are_whole(folder: Path, name: str) -> None:
    """TF32 has ten bits of a number where float32 has twenty-three."""
    expected = lensed(folder, "plain")
    with SET[name]():
        found = lensed(folder, "plain")
    for one, other in zip(found, expected, strict=True):
        for tap, values in one.taps.items():
            np.testing.assert_allclose(values.logsumexp, other.taps[tap].logsumexp, atol=1e-5)
