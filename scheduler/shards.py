"""Shards: the prompts one actor takes at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from raylens.storage.positions import Positions
from raylens.storage.record import Prompt
from raylens.workers.settings import WorkerSettings

#: Prompts of one shard at most; from 16 on, Ray's cost a call no longer counts.
MAX_PROMPTS = 64
#: Shards each actor should get at least, so that all stay busy to the end.
SHARDS_PER_ACTOR = 4
#: Batches, as large as may be, that make a shard.
SHARD_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Shard:
    """Prompts for one call of one actor. ``alone`` keeps its actor free of anything else, to find who kills it."""

    prompts: list[Prompt]
    alone: bool = False


def estimated_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has; English text has some four characters a token, other scripts fewer."""
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    if prompt.messages is not None:
        return 16 + sum(len(str(message.get("content", ""))) for message in prompt.messages) // 3
    return 1 + len(prompt.text or "") // 3


def estimated_positions(worker: WorkerSettings) -> Callable[[Prompt], int]:
    """About how many positions of each prompt are lensed: one at least, for its tokens may be more than estimated."""
    meant, new = Positions.parse(worker.lens.positions), worker.generation.tokens if worker.generation else 0

    def lensed(prompt: Prompt) -> int:
        tokens = range(estimated_tokens(prompt))  # counted as ranges: a list of each prompt's positions would take its time
        chosen = tokens[-meant.last :] if meant.last else tokens[meant.first : meant.end]
        return new or max(1, len(chosen))

    return lensed


def shards(prompts: Iterable[Prompt], count: int, actors: int, tokens: int, new: int = 0) -> Iterator[Shard]:
    """Cut a stream of about ``count`` prompts into shards of at most about ``tokens`` tokens.

    Args:
        new: tokens that are generated after each. Then a shard is as large as it may be: a step costs little more for many.
    """
    most = max(1, min(MAX_PROMPTS, -(-count // (actors * (1 if new else SHARDS_PER_ACTOR)))))
    batch: list[Prompt] = []
    size = 0
    for prompt in prompts:
        if batch and (len(batch) >= most or size + estimated_tokens(prompt) + new > tokens):
            yield Shard(batch)
            batch, size = [], 0
        batch.append(prompt)
        size += estimated_tokens(prompt) + new
    if batch:
        yield Shard(batch)


def cut(prompts: Iterable[Prompt], count: int, actors: int, worker: WorkerSettings) -> Iterator[Shard]:
    """The shards of a run.

    Args:
        prompts, count, actors: as for ``shards``.
        worker: its settings, with the tokens of a batch.
    """
    tokens, new = SHARD_BATCHES * (worker.input.batch_tokens or 1), worker.generation.tokens if worker.generation else 0
    return shards(prompts, count, actors, tokens, new)
