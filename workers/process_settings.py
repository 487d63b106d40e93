"""Settings of torch and numpy of a whole process, which belong to the program that raylens is called from."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def untouched_settings() -> Iterator[None]:
    """While open, this thread computes as where nothing has been set; what a program has set holds again afterwards.

    A notebook may have set a default device or type, have autocast on, have numpy raise what overflows or underflows, or allow
    float32 products of fewer bits (TF32 on a GPU, bfloat16 on some CPUs), as NVIDIA's containers do by an environment variable.
    The certificate speaks of none of that.
    """
    with ExitStack() as stack:
        stack.enter_context(np.errstate(all="warn", under="ignore"))
        if torch.get_default_device() != torch.device("cpu"):  # costs every call into torch a little
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_default_type())
        stack.enter_context(_whole_products())
        yield


@contextmanager
def _default_type() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _whole_products() -> Iterator[None]:
    """Float32 products of float32 numbers; torch has an older setting of that for all devices and newer ones for each."""
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # made at import
    by_place = [place.fp32_precision for place in places]
    try:
        for_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer ones say otherwise than it
        for_all = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if for_all is not None:
            torch.set_float32_matmul_precision(for_all)
        for place, before in zip(places, by_place, strict=True):
            place.fp32_precision = before
