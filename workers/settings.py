"""What a run asks of the model and the lens, validated as far as text alone can be."""

import os
import re
from functools import reduce
from pathlib import PurePath
from typing import Literal, get_args

import msgspec

from raylens.storage.errors import UsageError, brief
from raylens.storage.generated import MAX_SAMPLES
from raylens.storage.layers import select_layers
from raylens.storage.python_values import Settings
from raylens.storage.taps import DEFAULT_TAPS, is_head
from raylens.workers.interventions.edits import Edit
from raylens.workers.lenses.source import lens_taps, parse_lens
from raylens.workers.metrics import ALL, ATTRIBUTIONS, parse_stats

DType = Literal["auto", "float32", "bfloat16", "float16"]
LogprobType = Literal["float16", "float32"]
OnLong = Literal["truncate", "skip", "error"]

#: Most tokens kept at a place, as tables and exports count ranks in 16 bits; and generated after a prompt.
MAX_TOP_K, MAX_NEW_TOKENS = (1 << 16) - 1, 1 << 20
#: Tokens of one batch on a CPU, where the settings leave it open.
CPU_BATCH_TOKENS = 512


class ModelSettings(Settings, frozen=True):
    """Which model, and how it is loaded.

    Attributes:
        source: a folder, a GGUF file, a hub id, or ``demo``; it may be given as a Path too.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; ``auto`` keeps the checkpoint's.
        device_map: handed to accelerate, such as ``auto`` or a JSON object from module names to devices; None puts the model
            on one device.
        trust_remote_code: run code that comes with the model.
    """

    source: str
    revision: str | None = None
    dtype: DType = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "source", model_source(self.source))


def model_source(given: str | PurePath) -> str:
    """The text that stands for a model; a path is of this machine, never a hub id nor ``demo``."""
    if not isinstance(given, PurePath):
        return given
    return str(given) if given.is_absolute() or given.parts[:1] == ("~",) else f"./{given}"


class LensSettings(Settings, frozen=True):
    """What is read out.

    Attributes:
        top_k: tokens a place.
        layers: ``all``, ``0,5-10``, ``-1`` or a slice such as ``::4``.
        taps: canonical names; None means the default four, less those the model lacks.
        positions: ``last``, ``all``, ``last:N``, a position, or a slice ``A:B``; below 0 they count from the end.
        logprobs: how they are stored; float32 also has each tap read by itself, within 1e-4, never by running sums.
        stats: metrics of each place that are stored too (metrics.py); None leaves them to ``with_default_stats``.
        track: tokens whose logprob and rank are stored at each place: the text of one token, or ``id:`` and its number.
        lens: ``logit``, or kind and path of another lens (lenses/).
        lens_digest: of its files when the run began; a worker refuses other ones.
        heads: layers whose attention heads are read out one by one, each as a tap ``head_N``; in the form of ``layers``.
        residual_stats: more of them, of resid_post only.
    """

    top_k: int = 10
    layers: str = "all"
    taps: tuple[str, ...] | None = None
    positions: str = "last"
    logprobs: LogprobType = "float16"
    stats: tuple[str, ...] | None = ()
    track: tuple[str, ...] = ()
    lens: str = "logit"
    lens_digest: str | None = None
    heads: str | None = None
    residual_stats: tuple[str, ...] = ()


class InputSettings(Settings, frozen=True):
    """How prompts become token ids.

    Attributes:
        chat_template: Jinja source used instead of the tokenizer's own for prompts with messages.
        max_tokens: the longest prompt in tokens; None means the model's own limit.
        on_long: what a longer prompt comes to: its beginning, a skipped prompt, or a failure.
        batch_tokens: tokens of one batch, padding and those to be generated included; None lets the run choose by device.
    """

    chat_template: str | None = None
    max_tokens: int | None = None
    on_long: OnLong = "error"
    batch_tokens: int | None = None


class GenerationSettings(Settings, frozen=True):
    """What is generated after each prompt.

    Attributes:
        tokens: as many, or fewer where the model ends the sequence.
        temperature: the logits are divided by it before a token is drawn; 0 takes the most probable token.
        top_p: draw from the fewest most probable tokens that have this probability together.
        top_k: draw from so many most probable tokens; None draws from all.
        seed: of the draws.
        samples: of each prompt.
    """

    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0
    samples: int = 1


class WorkerSettings(msgspec.Struct, frozen=True):
    """Everything a worker needs to know.

    Attributes:
        model, lens, input: of the run.
        edits: of the model while it runs (interventions/).
        generation: None where prompts are only read.
    """

    model: ModelSettings
    lens: LensSettings = LensSettings()
    input: InputSettings = InputSettings()
    edits: tuple[Edit, ...] = ()
    generation: GenerationSettings | None = None


def generation_settings(
    tokens: int | None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    sample_top_k: int | None = None,
    seed: int = 0,
    samples: int = 1,
) -> GenerationSettings | None:
    """The settings that these options ask for; None without ``--generate``.

    Raises:
        UsageError: another one is given without it.
    """
    asked = GenerationSettings(0 if tokens is None else tokens, temperature, top_p, sample_top_k, seed, samples)
    if tokens is not None:
        return asked
    options = ("--generate", "--temperature", "--top-p", "--sample-top-k", "--seed", "--samples")
    for option, value, usual in zip(options, *map(msgspec.structs.astuple, (asked, GenerationSettings(0))), strict=True):
        if value != usual:
            raise UsageError(f"{option} {value}: applies only to generation; give --generate N too")
    return None


def with_default_stats(lens: LensSettings, n_layers: int) -> LensSettings:
    """With the metrics that tell how a prediction is decided, where all layers of the residual are lensed and none are refused.

    Args:
        lens: as asked; no metrics at all refuse those too.
    """
    taps = lens_taps(parse_lens(lens.lens), lens.taps) or DEFAULT_TAPS
    every = "resid_post" in taps and len(select_layers(lens.layers, n_layers)) == n_layers
    asked = lens.stats or ()
    more = tuple(name for name in ALL if name not in asked) if every and lens.stats != () else ()
    return msgspec.structs.replace(lens, stats=asked, residual_stats=more)


def _path_as_bytes(value: object) -> bytes:
    if isinstance(value, PurePath):
        return bytes(value)  # which no text is taken for
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UsageError(f"{brief(value, repr)}: a {kind}; give what the option on the command line takes")


def check_types(settings: msgspec.Struct) -> None:
    """Refuse what a Python caller gave of the wrong type; the command line cannot.

    Raises:
        UsageError: naming the value.
    """
    try:
        plain = msgspec.to_builtins(settings, builtin_types=(bytes,), enc_hook=_path_as_bytes)
        msgspec.convert(plain, type(settings), dec_hook=lambda kind, value: kind(os.fsdecode(value)))
    except msgspec.ValidationError as error:
        raise UsageError(_in_words(str(error), settings)) from error
    except UnicodeEncodeError as error:
        why = "holds bytes that are not UTF-8, or half of a surrogate pair"
        raise UsageError(f"{brief(error.object, repr)}: {why}; write whole characters") from error


#: msgspec's words for types, and those for people.
_TYPES = {"str": "text", "int": "a whole number", "float": "a number", "bool": "True or False", "array": "a list", "null": "None"}
_TYPES["bytes"] = "bytes or a path"


def _in_words(problem: str, settings: msgspec.Struct) -> str:
    if found := re.fullmatch(r"Invalid enum value (.*) - at `\$\.([.\w]+)`", problem, re.DOTALL):
        *parts, name = found[2].split(".")
        of = type(reduce(getattr, parts, settings))
        choices = next(get_args(field.type) for field in msgspec.structs.fields(of) if field.name == name)
        return f"{name} {brief(found[1])}: choose from {', '.join(choices)}"
    found = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)` - at `\$(?:\.\w+)*?\.?(\w+)(\[[^`]*)?`", problem)
    if found is None:
        return problem
    wanted = " or ".join(_TYPES.get(kind, kind) for kind in found[1].split(" | "))
    return f"{found[3]}: give {wanted}, as for the option on the command line, not {_TYPES.get(found[2], found[2])}"


def check(settings: WorkerSettings) -> None:
    """Refuse values of the wrong type, and numbers out of range.

    Raises:
        UsageError: naming the option.
    """
    check_types(settings)
    lens_taps(parse_lens(settings.lens.lens), settings.lens.taps)
    _check_parts(settings.lens)
    if settings.lens.top_k < 1:
        raise UsageError(f"--top-k {settings.lens.top_k}: must be at least 1")
    if settings.lens.top_k > MAX_TOP_K:
        raise UsageError(
            f"--top-k {settings.lens.top_k}: at most {MAX_TOP_K}; to get the rank of a token beyond that, use --track"
        )
    if settings.input.max_tokens is not None and settings.input.max_tokens < 1:
        raise UsageError(f"--max-tokens {settings.input.max_tokens}: must be at least 1")
    if settings.input.batch_tokens is not None and settings.input.batch_tokens < 1:
        raise UsageError(f"--batch-tokens {settings.input.batch_tokens}: must be at least 1")
    if settings.generation is not None:
        _check_generation(settings.generation, settings.lens.positions)


def _check_parts(lens: LensSettings) -> None:
    """Refuse what heads and attributions cannot be of."""
    attributions = [name for name in parse_stats(lens.stats or ()) if name in ATTRIBUTIONS]
    option = f"--heads {lens.heads}" if lens.heads is not None else f"--stats {attributions[0]}" if attributions else ""
    if option and lens.lens != "logit":
        raise UsageError(f"{option}: works only with the logit lens; leave out --lens {lens.lens}")
    if head := next((tap for tap in lens.taps or () if is_head(tap)), None):
        raise UsageError(f"--taps {head}: name the layers whose heads to lens, as --heads 5,8 or --heads all")
    if "attribution" in attributions and not lens.track:
        raise UsageError("--stats attribution: needs tracked tokens; give --track too, or use --stats best_attribution")
    if attributions and lens.taps is not None and "resid_post" not in lens.taps:
        raise UsageError(f"--stats {attributions[0]}: its check is stored with resid_post; add resid_post to --taps")


def _check_generation(asked: GenerationSettings, positions: str) -> None:
    ranges: dict[str, tuple[float, float, float]] = {
        "--generate": (asked.tokens, 1, MAX_NEW_TOKENS),
        "--temperature": (asked.temperature, 0.0, 1000.0),
        "--sample-top-k": (1 if asked.top_k is None else asked.top_k, 1, 1 << 30),
        "--seed": (asked.seed, 0, (1 << 63) - 1),
        "--samples": (asked.samples, 1, MAX_SAMPLES),
    }
    for option, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise UsageError(f"{option} {value}: must be from {least:g} to {most}")
    if not 0 < asked.top_p <= 1:
        raise UsageError(f"--top-p {asked.top_p}: must be over 0 and at most 1")
    if positions != "last":
        raise UsageError(f"--positions {positions}: with --generate, the generated steps are lensed; leave out --positions")
    drawn = {"--top-p": asked.top_p < 1, "--sample-top-k": asked.top_k is not None, "--samples": asked.samples > 1}
    drawn["--seed"] = asked.seed != 0
    for option in (option for option, given in drawn.items() if given and not asked.temperature):
        raise UsageError(f"{option}: nothing is sampled at temperature 0; give --temperature too, such as 1")
