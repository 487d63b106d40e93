"""Generation that is read out in several parts while prompts of the batch come to their end."""

import json
from pathlib import Path

import pytest

from raylens.workers import generation as generation_module
from raylens.workers.settings import GenerationSettings
from raylens.workers.worker import Worker
from tests.models import save
from tests.unit.test_generation import NEW, TEXTS, assert_same_lens, new_ids, prompts, records, settings


def test_prompts_that_end_between_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps its own steps, though fewer prompts are in a part than were in the one before."""
    folder = save(tmp_path / "ending")
    asked = {"stats": ("kl", "next_rank")}
    free = records(Worker(settings(folder, GenerationSettings(NEW), asked)), prompts(TEXTS))
    ends = [new_ids(free[0])[2], new_ids(free[3])[4]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    worker = Worker(settings(folder, GenerationSettings(NEW), asked))
    monkeypatch.setattr(generation_module, "PENDING_BYTES", 1)
    found = records(worker, prompts(TEXTS))
    assert len({len(record.positions) for record in found}) > 2
    for record, whole in zip(found, free, strict=True):
        assert new_ids(record) == new_ids(whole)[: len(record.positions)]
        assert_same_lens(record, whole)
