"""Loading the model's weights."""

from typing import Any

import torch

from raylens.storage.errors import ModelError
from raylens.workers.preflight import load_tokenizer
from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve


def load_model(settings: ModelSettings) -> tuple[Any, Any]:
    """The model in evaluation mode on its device or devices, and its tokenizer.

    Raises:
        ModelError: it cannot be found, read, or does not fit.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = resolve(settings)
    tokenizer = load_tokenizer(settings, source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=settings.dtype,
            device_map=settings.device_map,
            trust_remote_code=settings.trust_remote_code,
        )
        if settings.device_map is None and torch.cuda.is_available():
            model = model.to("cuda")
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"--model {settings.source}: does not fit the GPU ({error}); try --dtype bfloat16 or --device-map auto"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"--model {settings.source}: cannot load the weights ({' '.join(str(error).split())[:300]})") from error
    return model.eval(), tokenizer
