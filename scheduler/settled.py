"""What every actor of a run gets: the settings, with what the user left open decided once for all of them."""

import msgspec

from raylens.workers.lenses.source import parse_lens
from raylens.workers.preflight import ModelFacts, pinned
from raylens.workers.settings import CPU_BATCH_TOKENS, WorkerSettings, with_default_stats

#: Tokens of one batch on a GPU.
GPU_BATCH_TOKENS = 4096
#: So many times the tokens are in one batch that generates: a step reads one of each prompt, and the others are cached.
GENERATION_BATCHES = 8


def with_stats(settings: WorkerSettings, facts: ModelFacts) -> WorkerSettings:
    """With the statistics that come by default, where the user left them open; they are part of the run's identity."""
    return msgspec.structs.replace(settings, lens=with_default_stats(settings.lens, facts.n_layers))


def settled(settings: WorkerSettings, facts: ModelFacts, gpus: float) -> WorkerSettings:
    """The same model and lens wherever an actor runs, and the batch size if the user left it open.

    Args:
        gpus: of the cluster.
    """
    given, lens = settings.input, parse_lens(settings.lens.lens)
    if given.batch_tokens is None:
        tokens = (GPU_BATCH_TOKENS if gpus else CPU_BATCH_TOKENS) * (GENERATION_BATCHES if settings.generation else 1)
        given = msgspec.structs.replace(given, batch_tokens=tokens)
    if lens.path is not None:
        lens = msgspec.structs.replace(lens, path=lens.path.resolve())
    read_out = msgspec.structs.replace(settings.lens, lens=str(lens), lens_digest=facts.lens_digest)
    return msgspec.structs.replace(settings, model=pinned(settings.model, facts), input=given, lens=read_out)
