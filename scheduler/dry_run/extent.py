"""How large a corpus is to a model: every prompt tokenized, none of them kept."""

from array import array
from collections.abc import Callable, Iterator
from itertools import chain

import msgspec
import numpy as np

from raylens.scheduler.corpus import Corpus
from raylens.scheduler.samples import samples_of
from raylens.scheduler.shards import cut
from raylens.storage.record import Failure, Prompt
from raylens.workers.preflight import ModelFacts, load_config, load_tokenizer
from raylens.workers.settings import WorkerSettings
from raylens.workers.tokenize import Tokenized, Tokenizer, longest_input


class Extent(msgspec.Struct, frozen=True):
    """The sums over a corpus, each sample of a prompt counted.

    Attributes:
        prompts, failures: of the run, and how many cannot be tokenized or are too long.
        tokens: read by the model; with what it generates, if it never ends a sequence early.
        given: those of the prompts alone.
        positions: lensed.
        shards: as the scheduler cuts them.
        lengths: [prompts] tokens of each, 0 for a failure; 4 bytes a prompt.
    """

    prompts: int
    failures: int
    tokens: int
    given: int
    positions: int
    shards: int
    lengths: array  # type: ignore[type-arg]


def measure(
    corpus: Corpus, count: int, worker: WorkerSettings, facts: ModelFacts, actors: int, told: Callable[[int], None]
) -> Extent:
    """Tokenize the whole corpus.

    Args:
        count: prompts of the corpus.
        worker: settings, with the tokens of a batch.
        actors: of the run.
        told: called with the prompts that are tokenized so far.
    """
    tokenize, new = _tokenizer(worker, facts), worker.generation.tokens if worker.generation else 0
    samples = worker.generation.samples if worker.generation else 1
    lengths, positions = array("I"), 0

    def prompts() -> Iterator[Prompt]:
        nonlocal positions
        for prompt in corpus.prompts():
            found = tokenize(prompt)
            lengths.extend([0 if isinstance(found, Failure) else len(found.ids)] * samples)
            if isinstance(found, Tokenized):
                positions += samples * (new or len(found.positions))
            told(len(lengths))
            yield from samples_of(prompt, samples)

    shards = sum(1 for _ in cut(prompts(), count * samples, actors, worker))
    given, failures = sum(lengths), lengths.count(0)
    # the last token that is generated is not read again
    read = given + (len(lengths) - failures) * max(0, new - 1)
    return Extent(len(lengths), failures, read, given, positions, shards, lengths)


def _tokenizer(worker: WorkerSettings, facts: ModelFacts) -> Tokenizer:
    config = load_config(worker.model, facts.source).get_text_config()
    tokenizer = load_tokenizer(worker.model, facts.source)
    new = worker.generation.tokens if worker.generation else 0
    longest = longest_input(config, tokenizer)
    return Tokenizer(tokenizer, worker.input, worker.lens.positions, longest, facts.vocabulary_size, new)


def sample(corpus: Corpus, extent: Extent, worker: WorkerSettings, most: int) -> list[Prompt]:
    """At most so many prompts that are of every length as the corpus is, the same each time, failures among them.

    Their order is such that the first few are also of every length.
    """
    samples = worker.generation.samples if worker.generation else 1
    ascending = np.argsort(np.frombuffer(extent.lengths, dtype=np.uint32), kind="stable")
    size = min(most, len(ascending))
    middles = ((np.arange(size) + 0.5) * len(ascending) / size).astype(np.int64)
    chosen = ascending[middles[_spread(size)]].tolist()
    prompts = chain.from_iterable(samples_of(prompt, samples) for prompt in corpus.prompts())
    wanted = set(chosen)
    found = {prompt.index: prompt for prompt in prompts if prompt.index in wanted}
    return [found[index] for index in chosen if index in found]


def _spread(size: int) -> list[int]:
    """The numbers below ``size`` in the order of the van der Corput sequence: the half, the quarters, ..., and 0 at last."""
    bits = max(1, (size - 1).bit_length())
    order = (int(f"{number:0{bits}b}"[::-1], 2) for number in [*range(1, 1 << bits), 0])
    return [number for number in order if number < size]
