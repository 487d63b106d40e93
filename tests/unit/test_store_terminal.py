"""Commands on a store made elsewhere: nothing in it gives a terminal an order, and what is damaged in a run costs one line."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens.storage.layout import RunFolder
from tests.builders import commit_outcomes, make_failure, make_record, make_run
from tests.command import raylens_command

#: Sets a terminal's title; click takes colours away where stdout is no terminal, and leaves this.
ORDER = "\x1b]0;x\x07"


@pytest.fixture
def hostile(tmp_path: Path) -> RunFolder:
    """A run whose name, settings and files hold orders, and a false line of output."""
    identity = {f"lens{ORDER}": {f"kind{ORDER}": f"tuned{ORDER}\nrun other: complete"}}
    sources = {"model": f"m{ORDER}", "corpus": f"c{ORDER}"}
    folder, _ = make_run(tmp_path, name=f"r{ORDER}", created=f"now{ORDER}", identity=identity, sources=sources)
    commit_outcomes(folder, make_record(0), make_failure(1, kind=f"crash{ORDER}"))
    measured = {"run_taps": [f"resid_post{ORDER}"], "lens": {"error": 1e-6, "path": f"p{ORDER}"}}
    folder.certificate.write_text(json.dumps(measured))
    (folder.quarantine / "reasons.jsonl").write_text("{\n")
    (folder.records / f"left{ORDER}").touch()
    return folder


COMMANDS: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "runs": (["runs", "STORE"], 0, ("m‹001B›",)),
    "show": (["show", "r", "-s", "STORE"], 0, ("lens‹001B›", "p‹001B›", "kind‹001B›", "c‹001B›", "(crash‹001B›")),
    "show a failure": (["show", "r/prompt-1", "-s", "STORE"], 0, ("(crash‹001B›",)),
    "status": (["status", "STORE", "RUN"], 0, ("1 crash‹001B›", "show 'r‹001B›")),
    "verify": (["verify", "STORE"], 6, ("left‹001B›", "show 'r‹001B›", "vocabulary.msgpack.zst")),
    "verify --repair": (["verify", "STORE", "--repair"], 6, ("reading r‹001B›", "vocabulary.msgpack.zst: moved")),
    "compact": (["compact", "r", "-s", "STORE"], 0, ("1 segments, now 1",)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_store_made_elsewhere_gives_no_orders(hostile: RunFolder, name: str) -> None:
    """Names, settings, kinds of failures and files are shown as text, each on the line that it belongs to."""
    arguments, code, expected = COMMANDS[name]
    if name.startswith("verify"):
        hostile.vocabulary.write_bytes(b"x")
    values = {"STORE": str(hostile.root.parents[1]), "RUN": hostile.root.name}
    done = raylens_command(*(values.get(argument, argument) for argument in arguments))
    words = done.stdout + done.stderr
    assert done.returncode == code, words
    assert "‹001B›]0;x‹0007›" in words
    assert all(text in words for text in expected), words
    assert all(line.isprintable() for line in words.split("\n")), words
    assert not any(line.startswith("run other") for line in words.splitlines())


def test_a_folder_in_the_place_of_the_quarantine_list(tmp_path: Path) -> None:
    """It is damage of that run, and hides no other."""
    for name in ("damaged", "whole"):
        folder, _ = make_run(tmp_path, name=name)
        commit_outcomes(folder, make_record(0))
    path = tmp_path / "runs" / "damaged" / "quarantine" / "reasons.jsonl"
    path.mkdir()
    problem = f"{path}: Is a directory"
    verified = raylens_command("verify", str(tmp_path))
    assert verified.returncode == 6
    assert f"damaged {problem}" in verified.stdout
    assert [line.split()[-1] for line in verified.stdout.splitlines() if line.startswith("whole")] == ["good"]
    repaired = raylens_command("verify", str(tmp_path), "--repair")
    assert repaired.returncode == 6
    assert f"not repaired: {problem}" in repaired.stderr
    told = raylens_command("status", str(tmp_path))
    assert (told.returncode, told.stderr.strip()) == (6, f"Error: {problem}")
    assert "whole" in told.stdout
    shown = raylens_command("show", "damaged", "-s", str(tmp_path))
    assert (shown.returncode, shown.stderr.strip()) == (6, f"Error: {problem}")


@pytest.mark.parametrize("certificate", [{"x": 1}, {"lens": 1, "run_taps": 2}, {"lens": {"error": "x"}, "run_taps": [3]}])
def test_what_a_run_does_not_say_is_a_question_mark(tmp_path: Path, certificate: dict[str, Any]) -> None:
    """A certificate and sources that lack what raylens writes there, as another tool's may."""
    folder, manifest = make_run(tmp_path)
    folder.certificate.write_text(json.dumps(certificate))
    folder.manifest.write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, sources={})))
    shown = raylens_command("show", "demo", "-s", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert "model ?, corpus ?" in shown.stdout
    assert "last lens against the model's logits: ?; ?" in shown.stdout
    listed = raylens_command("runs", str(tmp_path))
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[1].split()[2] == "?"
