"""A run of a model of the hub, from its name to the store."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import raylens
from tests.builders import same
from tests.command import raylens_command
from tests.hub import Hub
from tests.tiny import save_word_llama, sentences

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub without models."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a model of next to no time."""
    return save_word_llama(tmp_path / "words")


def test_a_run_is_of_one_commit(hub: Hub, words: Path, tmp_path: Path) -> None:
    """The manifest names it, the actor loads it though the branch may have moved on, and another commit is another model."""
    commit = hub.add("org/words", words)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    store = tmp_path / "store"
    command = ["run", "--text", "call me ishmael", "-m", "org/words", "-o", str(store), "--name", "r", "--ray", "local", "--json"]
    done = raylens_command(*command, env=environment)
    assert done.returncode == 0, done.stderr
    run = raylens.open(store)["r"]
    assert run.manifest.identity["model"]["weights"] == f"org/words@{commit}"
    assert run.manifest.sources["revision"] == commit
    assert f"GET /org/words/resolve/{commit}/model.safetensors" in hub.asked
    assert not [one for one in hub.asked if one.endswith("model.safetensors") and commit not in one]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    size = (words / "model.safetensors").stat().st_size
    assert {event["total"] for event in events if event["event"] == "fetch"} == {size}
    local = tmp_path / "local"
    again = raylens_command(*command[:4], str(words), "-o", str(local), "--name", "r", "--ray", "local")
    assert again.returncode == 0, again.stderr
    assert same(run["0"], raylens.open(local)["r"]["0"])

    other = hub.repositories["org/words"].push(save_word_llama(tmp_path / "other", seed=12))
    moved = raylens_command(*command, env=environment)
    assert moved.returncode == 2, moved.stderr
    assert f"org/words@{commit}" in moved.stderr
    assert f"org/words@{other}" in moved.stderr
    resumed = raylens_command(*command, "--revision", commit, env=environment)
    assert resumed.returncode == 0, resumed.stderr


def test_code_of_a_model_is_run_only_when_asked(hub: Hub, words: Path, tmp_path: Path) -> None:
    """Without --trust-remote-code it is refused; with it, the code of the same commit makes the model."""
    own = tmp_path / "own"
    shutil.copytree(words, own)
    config = json.loads((own / "config.json").read_text())
    config |= {
        "model_type": "own-llama",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (own / "config.json").write_text(json.dumps(config))
    (own / "own.py").write_text(CODE)
    hub.add("org/own", own)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = ["lens", "call me ishmael", "-m", "org/own"]
    refused = raylens_command(*command, env=environment)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "--model org/own: needs its own code; read it, then give --trust-remote-code" in refused.stderr
    trusted = raylens_command(*command, "--trust-remote-code", env=environment)
    assert trusted.returncode == 0, trusted.stderr
    plain = raylens_command("lens", "call me ishmael", "-m", str(words))
    assert trusted.stdout == plain.stdout


def test_a_lens_is_fitted_to_one_commit(hub: Hub, words: Path, tmp_path: Path) -> None:
    """A dry run of the model, then a fit of a lens to it: both of the commit that its files then name, fetched once."""
    commit = hub.add("org/words", words)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    (tmp_path / "c.txt").write_text("\n".join(sentences(60, 9)))
    more = ("--format", "lines", "-m", "org/words", "--ray", "local", "--quiet")
    dry = raylens_command("run", "c.txt", *more, "--dry-run", "-o", "store", cwd=tmp_path, env=environment)
    assert dry.returncode == 0, dry.stderr
    fitted = raylens_command(
        "fit-lens", "c.txt", *more, *("-o", "lens", "--kind", "linear", "--tokens", "200"), cwd=tmp_path, env=environment
    )
    assert fitted.returncode == 0, fitted.stderr
    provenance = json.loads((tmp_path / "lens" / "provenance.json").read_text())
    assert provenance["model"]["weights"] == f"org/words@{commit}"
    weights = [one for one in hub.asked if one.startswith("GET") and one.endswith("model.safetensors")]
    assert weights == [f"GET /org/words/resolve/{commit}/model.safetensors"]
