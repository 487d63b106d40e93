"""What a user left open is decided once for all actors of a run, and what was given stays."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens.scheduler.settled import GENERATION_BATCHES, GPU_BATCH_TOKENS, settled, with_stats
from raylens.workers.metrics import ALL
from raylens.workers.preflight import ModelFacts
from raylens.workers.settings import (
    CPU_BATCH_TOKENS,
    GenerationSettings,
    InputSettings,
    LensSettings,
    ModelSettings,
    WorkerSettings,
)
from raylens.workers.source import ModelSource

FACTS = ModelFacts(ModelSource("a/b", "c0ffee", "b", ""), 4, 8, 16, [], "", "", has_chat_template=False, lens_digest="d1ce")


def asked(**parts: Any) -> WorkerSettings:
    return WorkerSettings(ModelSettings("a/b", "main"), **parts)


@pytest.mark.parametrize(
    ("gpus", "generation", "tokens"),
    [
        (0.0, None, CPU_BATCH_TOKENS),
        (0.5, None, GPU_BATCH_TOKENS),
        (0.0, GenerationSettings(8), CPU_BATCH_TOKENS * GENERATION_BATCHES),
        (2.0, GenerationSettings(8), GPU_BATCH_TOKENS * GENERATION_BATCHES),
    ],
)
def test_tokens_of_a_batch(gpus: float, generation: GenerationSettings | None, tokens: int) -> None:
    """As the cluster's devices take them, and several times as many where a step reads one of each prompt; those given stay."""
    assert settled(asked(generation=generation), FACTS, gpus).input == InputSettings(batch_tokens=tokens)
    given = InputSettings(max_tokens=5, batch_tokens=7)
    assert settled(asked(generation=generation, input=given), FACTS, gpus).input == given


def test_every_actor_finds_the_same_model_and_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it works: whole paths of what is here, of the hub the commit that was found, of the lens its content."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    here = tmp_path.resolve()
    found = settled(asked(lens=LensSettings(top_k=3, lens="tuned:fitted")), FACTS, 0.0)
    assert (found.lens.lens, found.lens.lens_digest, found.lens.top_k) == (f"tuned:{here / 'fitted'}", "d1ce", 3)
    assert found.model == ModelSettings("a/b", "c0ffee")
    local = msgspec.structs.replace(FACTS, source=ModelSource("model", None, "model", "f00d"), lens_digest=None)
    found = settled(WorkerSettings(ModelSettings("model")), local, 0.0)
    assert found.model == ModelSettings(str(here / "model"))
    assert (found.lens.lens, found.lens.lens_digest) == ("logit", None)


def test_statistics_by_default() -> None:
    """All of them where every layer of the model is lensed, none where the user wants none."""
    every = "0-3"
    assert with_stats(asked(lens=LensSettings(layers=every, stats=None)), FACTS).lens.residual_stats == ALL
    assert with_stats(asked(lens=LensSettings(layers="0-2", stats=None)), FACTS).lens.residual_stats == ()
    assert with_stats(asked(lens=LensSettings(layers=every, stats=())), FACTS).lens.residual_stats == ()
