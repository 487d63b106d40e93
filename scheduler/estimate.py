"""What a run would take, before it is made: tokens, bytes, memory, and time at a measured product rate."""

import time
from typing import Any

import msgspec

from raylens.scheduler.chat import check_chat
from raylens.scheduler.corpus import Corpus
from raylens.scheduler.progress import duration
from raylens.scheduler.settings import RunSettings, check
from raylens.storage.record import Failure
from raylens.storage.taps import DEFAULT_TAPS
from raylens.workers.lenses.source import lens_taps, parse_lens
from raylens.workers.preflight import inspect_model, load_config, load_tokenizer
from raylens.workers.selection import select_layers
from raylens.workers.tokenize import Tokenizer, longest_input

#: Stored bytes of one top-k entry (id and logprob as JSON, zstd) and of one place's statistics; measured on SmolLM2.
ENTRY_BYTES = 5.0
PLACE_BYTES = 9.0
#: A share of the product's own rate that the whole pipeline reaches on a CPU.
EFFICIENCY = 0.6


class Estimate(msgspec.Struct, frozen=True):
    """The cost of a run.

    Attributes:
        prompts, failures: of the corpus, and how many of them could not be tokenized or are too long.
        tokens: read by the model; with what it generates, if it never ends a sequence early.
        places: (tap, layer, position) read out.
        store_bytes: of the store.
        model_bytes: of the weights.
        flops: of forward and lens.
        seconds: on this machine's CPU with one actor; None where a GPU will do it, whose rate nobody measured here.
    """

    prompts: int
    failures: int
    tokens: int
    places: int
    store_bytes: int
    model_bytes: int
    flops: float
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    def lines(self) -> list[str]:
        """For people."""
        spent = None if self.seconds is None else duration(self.seconds)
        words = (
            "not known for a GPU" if spent is None else f"about {spent} on this CPU with one actor, and half a minute to start"
        )
        return [
            f"prompts  {self.prompts:,}"
            + (f" ({self.failures:,} will fail: empty, too long or unreadable)" if self.failures else ""),
            f"tokens   {self.tokens:,}",
            f"places   {self.places:,} (tap, layer, position)",
            f"store    about {self.store_bytes / 1e6:,.1f} MB",
            f"memory   {self.model_bytes / 1e9:,.2f} GB for the weights of each actor, and about 0.5 GB to work in",
            f"work     {self.flops / 1e12:,.2f} TFLOP",
            f"time     {words}",
        ]


def estimate(settings: RunSettings, corpus: Corpus) -> Estimate:
    """Tokenize the whole corpus and work out what lensing it costs.

    Raises:
        RaylensError: as the run itself would before it loads the model.
    """
    import torch

    check(settings)
    summary = corpus.scan(None)
    worker = settings.worker
    facts = inspect_model(worker)
    check_chat(summary, facts)
    config = load_config(worker.model, facts.source).get_text_config()
    tokenizer = load_tokenizer(worker.model, facts.source)
    new, samples = (worker.generation.tokens, worker.generation.samples) if worker.generation else (0, 1)
    longest = longest_input(config, tokenizer)
    tokenize = Tokenizer(tokenizer, worker.input, worker.lens.positions, longest, facts.vocabulary_size, new)
    failures = tokens = positions = 0
    for prompt in corpus.prompts():
        found = tokenize(prompt)
        if isinstance(found, Failure):
            failures += samples
        else:
            # the last token that is generated is not read again
            tokens += samples * (len(found.ids) + max(0, new - 1))
            positions += samples * (new or len(found.positions))
    taps = lens_taps(parse_lens(worker.lens.lens), worker.lens.taps) or DEFAULT_TAPS
    layers = len(select_layers(worker.lens.layers, facts.n_layers))
    places = positions * sum(1 if tap == "resid_pre" else layers for tap in taps)
    parameters = _parameters(config, facts.n_layers)
    flops = 2.0 * parameters * tokens + 2.0 * facts.width * facts.vocabulary_size * places
    width = 2 if worker.model.dtype in {"bfloat16", "float16"} or "16" in str(getattr(config, "dtype", "")) else 4
    return Estimate(
        prompts=summary.count * samples,
        failures=failures,
        tokens=tokens,
        places=places,
        store_bytes=int(places * (worker.lens.top_k * ENTRY_BYTES + PLACE_BYTES)),
        model_bytes=(parameters + facts.width * facts.vocabulary_size) * width,
        flops=flops,
        seconds=None if torch.cuda.is_available() else flops / (_rate(facts.width) * EFFICIENCY),
    )


def _parameters(config: Any, n_layers: int) -> int:
    """About how many weights the blocks have: four square matrices of attention, three of a gated MLP."""
    width = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return n_layers * (4 * width * width + 3 * width * int(inner))


def _rate(width: int) -> float:
    """Floating point operations a second of a float32 product of the head's shape, measured for half a second."""
    import torch

    rows, weight = torch.randn(256, width), torch.randn(8192, width)
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < 0.5 or done < 2:
        torch.mm(rows, weight.T)
        done += 1
    return done * 2.0 * 256 * 8192 * width / spent
