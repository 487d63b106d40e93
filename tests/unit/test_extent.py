"""How large a corpus is to a model: as the model's own tokenizer counts it, each sample of a prompt by itself."""

from pathlib import Path
from typing import Any

import pytest

from raylens.scheduler.corpus import Corpus
from raylens.scheduler.dry_run.extent import Extent, measure, sample
from raylens.workers.preflight import ModelFacts, inspect_model
from raylens.workers.settings import GenerationSettings, InputSettings, LensSettings, ModelSettings, WorkerSettings
from tests.tiny import WORDS, save_word_llama

#: Words of each prompt; a word is a token. None can be read of the first, and the last is too long.
LENGTHS = [0, 3, 1, 5, 9]
LONGEST = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return inspect_model(WorkerSettings(ModelSettings(str(model))))


def corpus() -> Corpus:
    return Corpus.from_rows([{"id": f"p{length}", "text": " ".join(WORDS[:length])} for length in LENGTHS])


def worker(model: Path, positions: str = "last", generation: GenerationSettings | None = None, **given: Any) -> WorkerSettings:
    read_out, given_input = LensSettings(positions=positions), InputSettings(max_tokens=LONGEST, batch_tokens=64, **given)
    return WorkerSettings(ModelSettings(str(model)), read_out, given_input, generation=generation)


def measured(settings: WorkerSettings, facts: ModelFacts, told: list[int] | None = None) -> Extent:
    return measure(corpus(), len(LENGTHS), settings, facts, 1, ([] if told is None else told).append)


@pytest.mark.parametrize(("positions", "lensed"), [("last", 3), ("all", 9), ("last:2", 5)])
def test_prompts_that_are_read(model: Path, facts: ModelFacts, positions: str, lensed: int) -> None:
    """Failures count as prompts, and have neither tokens nor positions; how far it is, is told."""
    told: list[int] = []
    found = measured(worker(model, positions), facts, told)
    assert (found.prompts, found.failures, found.tokens, found.given, found.positions) == (5, 2, 9, 9, lensed)
    assert found.lengths.tolist() == [0, 3, 1, 5, 0]
    assert found.shards == 3
    assert told == [1, 2, 3, 4, 5]


def test_a_prompt_that_is_cut(model: Path, facts: ModelFacts) -> None:
    """It is read to the most tokens."""
    found = measured(worker(model, "all", on_long="truncate"), facts)
    assert (found.failures, found.tokens, found.positions) == (1, 15, 15)


def test_prompts_that_go_on(model: Path, facts: ModelFacts) -> None:
    """Every sample is read, and every step but the last one; each step is lensed."""
    found = measured(worker(model, generation=GenerationSettings(3, 1.0, samples=2)), facts)
    assert found.lengths.tolist() == [0, 0, 3, 3, 1, 1, 5, 5, 0, 0]
    assert (found.prompts, found.failures, found.given) == (10, 4, 18)
    assert found.tokens == 18 + 6 * 2
    assert found.positions == 6 * 3
    assert found.shards == 1


def test_a_sample_of_samples(model: Path, facts: ModelFacts) -> None:
    """Each is a prompt under its own id."""
    settings = worker(model, generation=GenerationSettings(3, 1.0, samples=2))
    found = sample(corpus(), measured(settings, facts), settings, 100)
    wanted = [(f"p{length}#{number}", number) for length in LENGTHS for number in (1, 2)]
    assert sorted((prompt.id, prompt.sample) for prompt in found) == sorted(wanted)
    assert all(LENGTHS[prompt.index // 2] == len((prompt.text or "").split()) for prompt in found)
