"""Loading the model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from raylens.storage.errors import DeviceError, ModelError, UsageError, brief, one_line
from raylens.workers.preflight import load_tokenizer
from raylens.workers.process_settings import untouched_settings
from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve


@untouched_settings()
def load_model(settings: ModelSettings) -> tuple[Any, Any]:
    """The model in evaluation mode on its device or devices, and its tokenizer.

    Raises:
        ModelError: it cannot be found, read, does not fit, or lacks weights.
        UsageError: the device map cannot be read.
    """
    from transformers import AutoModelForCausalLM

    source = resolve(settings)
    tokenizer = load_tokenizer(settings, source)
    device_map = _device_map(settings)
    try:
        with _no_loading_drawn():
            model, report = AutoModelForCausalLM.from_pretrained(
                source.path,
                output_loading_info=True,
                revision=source.revision,
                dtype=settings.dtype,
                device_map=device_map,
                trust_remote_code=settings.trust_remote_code,
            )
        if settings.device_map is None and torch.cuda.is_available():
            model = model.to("cuda")
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"--model {settings.source}: does not fit the GPU ({error}); try --dtype bfloat16 or --device-map auto"
        ) from error
    except Exception as error:
        raise ModelError(f"--model {settings.source}: cannot load the weights ({one_line(error)})") from error
    if missing := sorted(report["missing_keys"]):  # transformers has filled these at random
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ModelError(
            f"--model {settings.source}: the checkpoint lacks weights ({named}); give that of a causal language model"
        )
    return model.eval(), tokenizer


@contextmanager
def _no_loading_drawn() -> Iterator[None]:
    """No bar over the loading of weights; one over their download, which transformers would leave out with it, stays."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    drawn, disabled = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not disabled:
        enable_progress_bars()
    try:
        yield
    finally:
        if drawn and not disabled:  # the caller's own models are loaded as before
            logging.enable_progress_bar()


def _device_map(settings: ModelSettings) -> str | dict[str, int | str] | None:
    """What --device-map says: a word for accelerate, or a JSON object from module names to devices."""
    text = settings.device_map
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return msgspec.json.decode(text, type=dict[str, int | str])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise UsageError(
            f"--device-map {brief(text, repr)}: {error}; write auto, or a JSON object from module to device"
        ) from error


def require_device(device: torch.device) -> None:
    """See that a GPU still works.

    Raises:
        DeviceError: it does not, and never will in this process: what one kernel did wrong is then told to all that follow.
    """
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceError(f"{device} has failed and is lost to this process; start it anew ({str(error)[:200]})") from None
