"""Models of the hub: the commit that is meant, what is said of one that cannot be had, and its weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from raylens.storage.errors import ModelError
from raylens.workers.hub import commit_of, fetch
from tests.hub import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty cache."""
    with Hub() as hub:
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def folder(place: Path, **files: str) -> Path:
    """A folder of such files."""
    place.mkdir()
    for name, content in files.items():
        (place / name).write_text(content)
    return place


def model(place: Path, config: str = "{}", **weights: str) -> Path:
    return folder(place, **{"config.json": config, **weights})


def test_a_branch_is_the_commit_that_it_is_now(hub: Hub, tmp_path: Path) -> None:
    """Without a revision that of main; a commit is itself; a branch that moves on is another."""
    first = hub.add("org/m", model(tmp_path / "1"))
    repository = hub.repositories["org/m"]
    other = repository.push(model(tmp_path / "2", '{"a": 1}'), "step-2")
    assert [commit_of("org/m", revision) for revision in (None, "main", "step-2", first)] == [first, first, other, first]
    repository.branches["main"] = other
    assert commit_of("org/m", None) == other


def test_where_the_hub_is_away_it_is_the_commit_that_was(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched before can be used without a network."""
    commit = hub.add("org/m", model(tmp_path / "m"))
    assert commit_of("org/m", None) == commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_of("org/m", None) == commit
    with pytest.raises(
        ModelError, match=r"^--model org/other: no such folder here, it was not fetched before, and the hub cannot be"
    ):
        commit_of("org/other", None)


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("org/none", None, "no such folder here, nor a model of that name on the hub; check the name, or run hf auth login"),
        ("not a name", None, "no such folder here, nor a model of that name on the hub"),
        ("org/gated", None, "access denied by the hub; accept its licence there and run hf auth login"),
        ("org/m", "nope", "--revision nope: the hub has no such branch, tag or commit of it"),
        ("org/bare", None, "has no config.json on the hub"),
    ],
)
def test_what_cannot_be_had_is_told(hub: Hub, tmp_path: Path, repo: str, revision: str | None, message: str) -> None:
    """The name, what is wrong, and what to do."""
    hub.add("org/m", model(tmp_path / "m"))
    hub.add("org/gated", model(tmp_path / "gated"), gated=True)
    hub.add("org/bare", folder(tmp_path / "bare", **{"README.md": ""}))
    with pytest.raises(ModelError) as raised:
        commit_of(repo, revision)
    assert str(raised.value).startswith(f"--model {repo}: {message}")


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}})


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"model.safetensors": "w" * 9, "pytorch_model.bin": "old"}, ["model.safetensors"]),
        ({"pytorch_model.bin": "w" * 9, "model.gguf": "other"}, ["pytorch_model.bin"]),
        (
            {"model.safetensors.index.json": INDEX, "model-1.safetensors": "w" * 5, "model-2.safetensors": "w" * 4},
            ["model-1.safetensors", "model-2.safetensors"],
        ),
        ({"README.md": "none"}, []),
    ],
)
def test_weights_are_fetched_once(hub: Hub, tmp_path: Path, files: dict[str, str], wanted: list[str]) -> None:
    """Those that transformers would load, from the commit, and nothing else; what is there already is not asked for again."""
    commit = hub.add("org/m", model(tmp_path / "m", **files))
    told: list[tuple[int, int]] = []
    for _ in range(2):
        fetch("org/m", commit, lambda done, total: told.append((done, total)))
    weights = [name for name in files if name.startswith(("model-", "model.", "pytorch")) and not name.endswith(".json")]
    got = [one.rpartition("/") for one in hub.asked if one.startswith("GET /org/m/resolve/")]
    assert {place for place, _, _ in got} <= {f"GET /org/m/resolve/{commit}"}
    assert [name for _, _, name in got if name in weights] == wanted
    if wanted:
        assert told[-1][1] == 9
        assert all(0 <= done <= 9 and total == 9 for done, total in told)


def test_weights_that_cannot_be_fetched(hub: Hub, tmp_path: Path) -> None:
    """An index that is none, or that names a file that is not there."""
    bad = hub.add("org/bad", model(tmp_path / "bad", **{"model.safetensors.index.json": "[]"}))
    with pytest.raises(ModelError, match=r"^--model org/bad: its weights cannot be fetched from the hub"):
        fetch("org/bad", bad, lambda *_: None)
    lacking = hub.add("org/lacking", model(tmp_path / "lacking", **{"model.safetensors.index.json": INDEX}))
    with pytest.raises(ModelError, match=r"^--model org/lacking: its weights cannot be fetched from the hub"):
        fetch("org/lacking", lacking, lambda *_: None)


def test_a_fetch_can_be_stopped(hub: Hub, tmp_path: Path) -> None:
    """By what is told of it: Ctrl-C."""
    commit = hub.add("org/m", model(tmp_path / "m", **{"model.safetensors": "w" * 9}))

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("org/m", commit, stop)
