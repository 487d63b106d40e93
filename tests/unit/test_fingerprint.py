"""What tells a model folder from another."""

import os
from pathlib import Path

import pytest

from raylens.storage.errors import ModelError
from raylens.workers.settings import ModelSettings
from raylens.workers.source import fingerprint, resolve, state
from tests.permissions import closed, open_folder


def test_of_tokenizer_and_all_parts_of_the_weights(tmp_path: Path) -> None:
    """It changes with the tokenizer, and with large weights at their beginning, middle and end; not with other files."""

    def written(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return fingerprint(tmp_path)

    size = 5 << 20
    seen = [written("config.json", b"{}"), written("tokenizer.json", b"{}"), written("model.safetensors", bytes(size))]
    for place in (0, size // 2, size - 1):
        changed = bytearray(size)
        changed[place] = 1
        seen.append(written("model.safetensors", bytes(changed)))
    seen.append(written("tokenizer.json", b"[]"))
    large = bytearray(size)
    seen.append(written("tokenizer.json", bytes(large)))
    large[size // 3] = 1  # of a tokenizer every byte counts
    seen.append(written("tokenizer.json", bytes(large)))
    assert len(set(seen)) == len(seen)
    assert written("README.md", b"x") == seen[-1]


def test_of_all_that_changes_results(tmp_path: Path) -> None:
    """What ends a generated text, which tokens a tokenizer adds, and a model's own code."""
    (tmp_path / "config.json").write_text("{}")
    seen = [fingerprint(tmp_path)]
    names = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    for name in (*names, "vocab.txt", "spiece.model", "modeling_own.py"):
        (tmp_path / name).write_text("1")
        seen.append(fingerprint(tmp_path))
        (tmp_path / name).write_text("2")
        seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("what", "mode"), [("model", 0), ("model", 0o111), ("model", 0o444), ("model.gguf", 0)])
def test_of_what_may_not_be_read(what: str, mode: int) -> None:
    """A folder that is closed, that cannot be listed, or whose files cannot be reached; and a file."""
    with open_folder() as folder:
        path = folder / what
        if path.suffix:
            path.write_bytes(b"GGUF")
        else:
            path.mkdir()
            (path / "config.json").write_text("{}")
        settings = ModelSettings(str(path))
        with closed(path, mode):
            for read in (resolve, state) if path.is_dir() else (resolve,):
                with pytest.raises(
                    ModelError, match=rf"^--model {path}: {path}.* cannot be read \(Permission denied\); check its"
                ):
                    read(settings)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_of_a_pipe(tmp_path: Path, name: str) -> None:
    """It is refused, not waited for, whoever would read it."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=f"^--model {tmp_path}: {name} is no plain file; put the file itself in its place"):
        fingerprint(tmp_path)


def test_of_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    """A file may have any name but for a slash."""
    before = fingerprint(tmp_path)
    (tmp_path / "\udcff.bin").write_bytes(b"1")
    assert fingerprint(tmp_path) != before


def test_of_what_is_not_there_any_more(tmp_path: Path) -> None:
    """A link that leads nowhere, as a cache that was cut leaves it, is named; a folder of such a name is no file of the model."""
    (tmp_path / "config.json").write_bytes(b"{}")
    before = fingerprint(tmp_path)
    (tmp_path / "old.bin").mkdir()
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(
        ModelError, match=r"model\.safetensors cannot be read \(No such file or directory\); fetch the model again"
    ):
        fingerprint(tmp_path)
