"""What can be known of a model before its weights are loaded: layers, vocabulary, limits, tokenizer, identity."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from raylens.storage.errors import ModelError, RaylensError, UsageError, one_line
from raylens.storage.layers import select_layers
from raylens.storage.paths import given_path, is_text
from raylens.storage.positions import Positions
from raylens.storage.record import MAX_LAYERS
from raylens.storage.temporary import lacks_place, no_place
from raylens.storage.vocabulary import MAX_TOKENS, Vocabulary, unstorable
from raylens.workers.chosen import chosen_places
from raylens.workers.interventions.checking import check_edits
from raylens.workers.lenses.source import lens_digest, lens_taps, parse_lens
from raylens.workers.settings import ModelSettings, WorkerSettings, check
from raylens.workers.source import ModelSource, resolve
from raylens.workers.token_bytes import vocabulary_bytes
from raylens.workers.tokenize import longest_input, text_ids
from raylens.workers.tracked import Tracked


class ModelFacts(msgspec.Struct, frozen=True):
    """Facts of a model from its configuration and tokenizer.

    Attributes:
        source: where it is.
        n_layers, width, vocabulary_size: of the model.
        vocabulary: token id -> bytes.
        tokenizer_hash, chat_template_hash: SHA-256, short.
        has_chat_template: whether prompts with messages can be rendered.
        lens_digest: of the lens's files; None for the logit lens.
    """

    source: ModelSource
    n_layers: int
    width: int
    vocabulary_size: int
    vocabulary: Vocabulary
    tokenizer_hash: str
    chat_template_hash: str
    has_chat_template: bool
    lens_digest: str | None = None

    @property
    def weights(self) -> str:
        """What tells the weights from others: a fingerprint of the files, or the hub id and commit."""
        return self.source.fingerprint[:16] or f"{self.source.path}@{self.source.revision}"


def pinned(model: ModelSettings, facts: ModelFacts) -> ModelSettings:
    """The settings by which every actor finds the same model: a folder's whole path, of a hub model the commit found."""
    path = given_path(model.source, "--model")
    if model.source != "demo" and path.exists():
        model = msgspec.structs.replace(model, source=str(path.resolve()))
    return msgspec.structs.replace(model, revision=facts.source.revision)


def inspect_model(settings: WorkerSettings) -> ModelFacts:
    """Read configuration and tokenizer, and check the lens settings against them.

    Raises:
        ModelError: the model cannot be found or read.
        UsageError: a setting does not fit the model.
    """
    check(settings)
    Positions.parse(settings.lens.positions)
    if settings.input.chat_template is not None:
        _check_template(settings.input.chat_template)
    source = resolve(settings.model)
    config = load_config(settings.model, source)
    tokenizer = load_tokenizer(settings.model, source)
    text, n_layers, size, width = _sizes(settings.model, config)
    layers = select_layers(settings.lens.layers, n_layers)
    if settings.lens.heads is not None:
        select_layers(settings.lens.heads, n_layers, "--heads")
    if settings.lens.top_k > size:
        raise UsageError(f"--top-k {settings.lens.top_k}: larger than the vocabulary of {size} tokens")
    longest = longest_input(text, tokenizer)
    if settings.generation is not None and settings.generation.tokens >= longest:
        raise UsageError(f"--generate {settings.generation.tokens}: the model reads {longest} tokens, including the prompt's")
    vocabulary = vocabulary_bytes(tokenizer, size)
    if wrong := unstorable(vocabulary):
        raise ModelError(f"--model {settings.model.source}: its tokenizer has {wrong}; not supported")
    Tracked(settings.lens.track, tokenizer, vocabulary)
    check_edits(settings.edits, partial(text_ids, tokenizer), n_layers, width, longest)
    template = settings.input.chat_template or getattr(tokenizer, "chat_template", None) or ""
    return ModelFacts(
        source=source,
        n_layers=n_layers,
        width=width,
        vocabulary_size=size,
        vocabulary=vocabulary,
        tokenizer_hash=_hash(b"\0".join(token or b"" for token in vocabulary)),
        chat_template_hash=_hash(str(template).encode()) if template else "",
        has_chat_template=bool(template),
        lens_digest=_checked_lens(settings, layers, n_layers, width),
    )


def _sizes(model: ModelSettings, config: Any) -> tuple[Any, int, int, int]:
    """The configuration of the text model, and its layers, vocabulary and width.

    Raises:
        ModelError: it has none, or such as nothing could be stored of.
    """
    try:
        text = config.get_text_config()
        layers, size, width = int(text.num_hidden_layers), int(text.vocab_size), int(text.hidden_size)
        if not (1 <= layers <= MAX_LAYERS and 1 <= size <= MAX_TOKENS):
            raise ValueError(f"{layers:,} layers, limit {MAX_LAYERS:,}; a vocabulary of {size:,} tokens, limit {MAX_TOKENS:,}")
        return text, layers, size, width
    except (AttributeError, TypeError, ValueError) as error:
        kind = getattr(config, "model_type", "") or type(config).__name__
        raise ModelError(
            f"--model {model.source}: a {kind} does not have the sizes of a language model ({error}); not supported"
        ) from error


def _checked_lens(settings: WorkerSettings, layers: tuple[int, ...], n_layers: int, width: int) -> str | None:
    """The digest of the lens's files, once they are found to fit; none of that needs the weights."""
    source = parse_lens(settings.lens.lens)
    taps = lens_taps(source, settings.lens.taps)
    if source.path is None or taps is None:
        return None
    from raylens.workers.lenses.interface import Shape  # with torch, which takes a while
    from raylens.workers.lenses.opening import open_lens

    # opened first, for a file that is far too large is refused before it is read through
    open_lens(source, Shape(n_layers, width), chosen_places(taps, layers), settings.lens.lens_digest)
    return lens_digest(source)


def _check_template(source: str) -> None:
    import jinja2
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        """The tag that transformers adds to Jinja: what stands in it is the assistant's."""

        tags = {"generation"}  # noqa: RUF012  as Jinja has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    if not is_text(source):
        raise UsageError("--chat-template: holds half of a surrogate pair; write the whole character, or remove it")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(source)  # noqa: S701  never rendered here
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"--chat-template line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise UsageError("--chat-template: nested too deeply; is it the right file?") from error


def load_config(settings: ModelSettings, source: ModelSource) -> Any:
    """The model's configuration.

    Raises:
        ModelError: it cannot be read, or is not of a causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

    try:
        config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # files of strangers fail in every way
        raise _not_loadable(settings, error) from error
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise ModelError(
            f"--model {settings.source}: transformers {__version__} has no causal language model of type {config.model_type}; "
            "give a decoder, or install a newer transformers if the type is new"
        )
    return config


def load_tokenizer(settings: ModelSettings, source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, revision=source.revision, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # files of strangers fail in every way
        folder = Path(source.path)
        if folder.is_dir() and not any(part in path.name for path in folder.iterdir() for part in ("token", "vocab", ".model")):
            raise ModelError(
                f"--model {settings.source}: the folder has no tokenizer; save it there too, with its save_pretrained"
            ) from error
        raise _not_loadable(settings, error) from error


def _not_loadable(settings: ModelSettings, error: Exception) -> RaylensError:
    if isinstance(error, OSError) and lacks_place(error):  # for torch, which is imported here first
        return no_place(error)
    if "trust_remote_code" in str(error):
        return ModelError(f"--model {settings.source}: needs its own code; read it, then give --trust-remote-code")
    return ModelError(f"--model {settings.source}: its configuration or tokenizer cannot be read ({one_line(error)})")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
