"""``raylens run --show-config``: what a run would be asked, and by whom."""

import json
from pathlib import Path

import pytest

from tests.command import raylens_command

URL = "rediss://raylens:sEcReT@host:6379/0?ssl_ca_certs=/ca.crt&password=sEcReT"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(f'top-k = 5\nlayers = "::4"\nredis = "{URL}"\n')
    return path


def test_each_value_and_who_gave_it(config: Path) -> None:
    """Flags win over the environment, which wins over the file, which wins over the default."""
    done = raylens_command(
        "run", "a.jsonl", "b.jsonl", "-m", "demo", "--config", str(config), "-k", "7", "--show-config", "--json",
        env={"RAYLENS_RUN_LAYERS": "0,5", "RAYLENS_RUN_TOP_K": "6", "RAYLENS_STORE": "elsewhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["corpus"] == {"value": ["a.jsonl", "b.jsonl"], "from": "command line"}
    assert found["top-k"] == {"value": 7, "from": "command line"}
    assert found["layers"] == {"value": "0,5", "from": "environment"}
    assert found["store"] == {"value": "elsewhere", "from": "environment"}
    assert found["redis"] == {"value": "rediss://***@host:6379/0", "from": "file"}
    assert found["positions"] == {"value": "last", "from": "default"}
    assert found["name"] == {"value": None, "from": "default"}
    assert {"model", "dtype", "taps", "actors", "ray", "quiet", "max-tokens"} < found.keys()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_it_shows_no_secret_and_does_nothing(config: Path, tmp_path: Path, form: list[str]) -> None:
    """Whoever gave the URL; neither corpus nor model need exist, and no store is made."""
    for given in (["--config", str(config)], ["--redis", URL]):
        store = tmp_path / "store"
        done = raylens_command("run", "none.jsonl", "-m", "none", "-o", str(store), *given, "--show-config", *form)
        assert done.returncode == 0, done.stderr
        assert "rediss://***@host:6379/0" in done.stdout
        assert "sEcReT" not in done.stdout + done.stderr
        assert not store.exists()


def test_the_table_has_a_line_an_option(config: Path) -> None:
    """Option, value and source, a line each."""
    done = raylens_command("run", "a b.jsonl", "-m", "demo", "--config", str(config), "--quiet", "--show-config")
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    shown = {name: rest.strip() for name, rest in lines}
    assert shown["option"].split() == ["value", "from"]
    assert shown["corpus"].split("  ")[0] == "'a b.jsonl'"
    assert shown["top-k"].split() == ["5", "file"]
    assert shown["quiet"].split() == ["true", "command", "line"]
    assert shown["name"].split() == ["-", "default"]


def test_a_file_may_name_the_corpus(tmp_path: Path) -> None:
    """One file or several, whose names may hold blanks."""
    for written, corpus in (
        ('"my prompts.txt"', ["my prompts.txt"]),
        ('["my prompts.txt", "b.txt"]', ["my prompts.txt", "b.txt"]),
    ):
        (tmp_path / "run.toml").write_text(f"corpus = {written}\n")
        done = raylens_command("run", "-m", "demo", "--config", "run.toml", "--show-config", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["corpus"] == {"value": corpus, "from": "file"}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("top-k = true", "'true' is not a valid integer"),
        ('"-k" = 5', "unknown option '-k'"),
        ("fresh = true", "unknown option 'fresh'"),
        ("top-k = " + "9" * 5000, "--config run.toml: Exceeds the limit"),
        ("top-k = " + "[" * 3000, "--config run.toml: "),
    ],
)
def test_a_file_is_refused_that_means_nothing(tmp_path: Path, written: str, told: str) -> None:
    """true is no number, an option has one name, a file that says fresh would throw away each resume, and TOML has bounds."""
    (tmp_path / "run.toml").write_text(written)
    done = raylens_command("run", "a.txt", "-m", "demo", "--config", "run.toml", "--show-config", cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
