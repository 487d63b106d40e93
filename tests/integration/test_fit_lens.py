"""``raylens fit-lens`` and ``raylens.fit_lens`` on a real Ray: actors share the layers, and a stopped fit leaves nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.numpy import load_file

import raylens
from raylens.scheduler import placing
from raylens.scheduler.cli import group
from raylens.scheduler.cluster import cluster
from tests.command import raylens_command
from tests.started import TOOLS, started
from tests.tiny import save_word_llama, sentences
from tests.waiting import HUNG, wait_until

SIZES = ("--tokens", "600", "--batch-tokens", "64")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model ``m``, a corpus, and the lens ``tuned``, fitted by two actors; and the table that was printed."""
    place = tmp_path_factory.mktemp("fitting")
    save_word_llama(place / "m", layers=3)
    (place / "c.jsonl").write_text("".join(json.dumps({"words": text}) + "\n" for text in sentences(160, 9)))
    done = fit(place, "tuned", *SIZES, "--steps", "2", "--actors", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["next: raylens run CORPUS --model m --lens tuned:tuned"]
    (place / "table.txt").write_text(done.stdout)
    return place


def fit(place: Path, output: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return raylens_command("fit-lens", "c.jsonl", "-m", "m", "--column", "words", "-o", output, *arguments, cwd=place)


def test_tuned_lens_of_two_actors(place: Path) -> None:
    """Every layer is nearer to the final prediction than before; the files say where they come from, and --lens reads them."""
    assert sorted(path.name for path in (place / "tuned").iterdir()) == ["config.json", "params.pt", "provenance.json"]
    found = json.loads((place / "tuned" / "provenance.json").read_text())
    assert [(one["tap"], one["layer"]) for one in found["report"]] == [("resid_pre", 0), ("resid_post", 0), ("resid_post", 1)]
    assert all(one["kl_after"] < one["kl_before"] for one in found["report"])
    assert found["tokens"] == {"fit": 600, "validation": 75, "held_out": 75}
    assert found["settings"]["steps"] == 2
    assert (found["model"]["label"], found["model"]["layers"], found["model"]["width"]) == ("m", 3, 32)
    assert (found["corpus"]["name"], found["corpus"]["prompts"]) == ("c.jsonl", 160)
    assert found["versions"]["raylens"] == raylens.__version__
    lines = (place / "table.txt").read_text().splitlines()
    assert lines[0].split() == ["tap", "layer", "KL", "before", "KL", "after", "chosen"]
    for line, one in zip(lines[1:4], found["report"], strict=True):
        numbers = [f"{one[name]:z.4f}" for name in ("kl_before", "kl_after")]
        assert line.split() == [one["tap"], str(one["layer"]), *numbers, *one["chosen"].split()]
    assert lines[4] == "tokens: fit 600, validation 75, held out 75"
    record = raylens.lens("call me ishmael", model=str(place / "m"), lens=f"tuned:{place / 'tuned'}")
    assert list(record.taps) == ["resid_post"]


def test_linear_lens_from_python(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maps are near the identity, --lens linear: reads its file, and quiet is quiet; the command's JSON is the same.

    Of a cluster that has no room for all its actors a fit says so, and ends.
    """
    model, output = str(place / "m"), place / "linear"
    with cluster("local"):  # both use the Ray that is there
        report = raylens.fit_lens(
            place / "c.jsonl",
            model=model,
            output=output,
            kind="linear",
            column="words",
            tokens=600,
            batch_tokens=64,
            device_map="cpu",
            quiet=True,
        )
        assert json.loads((output / "provenance.json").read_text())["settings"]["model"]["device_map"] == "cpu"
        assert capfd.readouterr() == ("", "")
        command = ["fit-lens", "c.jsonl", "-m", model, "--column", "words", "--kind", "linear", *SIZES]
        with contextlib.chdir(place):
            group([*command, "-o", str(place / "again"), "--json"], standalone_mode=False)
        again = json.loads(capfd.readouterr().out)

        monkeypatch.setattr(placing, "PLACE_SECONDS", 0.0)
        monkeypatch.setattr(placing, "MAX_PLACE_SECONDS", 1.0)
        taken = placement_group([{"CPU": ray.cluster_resources()["CPU"] / 2}])
        ray.get(taken.ready())
        with (
            contextlib.chdir(place),
            pytest.raises(click.ClickException, match=r"^[01] of 2 actors have started"),
        ):
            group([*command, "--actors", "2", "-o", "crowded"], standalone_mode=False)
        assert "waiting for the Ray cluster to place and start the actors" in capfd.readouterr().err
        assert not (place / "crowded").exists()
        remove_placement_group(taken)
    assert report.lens == f"linear:{output / 'lens.safetensors'}"
    assert again == {**msgspec.to_builtins(report), "lens": f"linear:{place / 'again' / 'lens.safetensors'}"}
    assert [(one.tap, one.layer) for one in report.layers] == [("resid_post", 0), ("resid_post", 1)]
    assert all(one.kl_after < one.kl_before for one in report.layers)
    maps = load_file(output / "lens.safetensors")
    assert sorted(maps) == ["A.0", "A.1", "b.0", "b.1"]
    assert np.diag(maps["A.1"]).mean() > 0.5
    assert list(raylens.lens("call me ishmael", model=model, lens=report.lens).taps) == ["resid_post"]
    for actors, told in ((0, "^actors 0"), ("2", "actors: give a whole number")):
        with pytest.raises(raylens.UsageError, match=told):
            raylens.fit_lens(["call me"], model=model, output=place / "new", actors=actors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "arguments", "code", "part"),
    [
        ("tuned", (), 2, "--output tuned: is there already; give another name, or move it away"),
        ("new", ("--kind", "linear", "--steps", "3"), 2, "--steps 3: a linear lens is least squares"),
        ("new", ("--actors", "0"), 2, "--actors 0: must be at least 1"),
        ("new", ("--limit", "2"), 4, "c.jsonl: no prompt of two tokens or more for the part"),
        ("new", ("--column", "nothing"), 4, "c.jsonl:1"),
        ("new", ("-m", "nowhere/at/all"), 4, "--model nowhere/at/all: no such folder"),
    ],
)
def test_refused_before_anything_starts(place: Path, output: str, arguments: tuple[str, ...], code: int, part: str) -> None:
    """One line, no Ray, and no folder."""
    before = sorted(path.name for path in place.iterdir())
    done = fit(place, output, *arguments)
    assert done.returncode == code, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert part in line
    assert "starting Ray" not in done.stderr
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_node_short_of_memory(place: Path) -> None:
    """An actor that Ray ends to save its node is told in one line with a remedy."""
    arguments = ("fit-lens", "c.jsonl", "-m", "m", "--column", "words", "-o", "short", *SIZES)
    done = raylens_command(*arguments, cwd=place, env={"RAY_memory_usage_threshold": "0.001"})
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: an actor died (")
    assert done.stderr.endswith(
        "running low on memory); is there enough memory for the model? Try fewer --actors or --dtype bfloat16\n"
    )
    assert not (place / "short").exists()


def test_ctrl_c_leaves_nothing(place: Path) -> None:
    """While it is training: exit code 130, and neither the folder nor what was to become it."""
    before = {path.name for path in place.iterdir()}
    arguments = ["c.jsonl", "-m", "m", "--column", "words", "-o", "stopped", *SIZES, "--steps", "1000000"]
    log = place / "stopped.log"
    with started(log, [sys.executable, "-m", "raylens", "fit-lens", *arguments], TOOLS) as process:
        wait_until(lambda: "fitting 3 maps on 600 tokens" in log.read_text(), "the fit has begun")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HUNG) == 130, log.read_text()
    assert "stopped" in log.read_text().splitlines()
    assert {path.name for path in place.iterdir()} == before | {"stopped.log"}


class Interrupted:
    """Rows whose reader is interrupted as soon as they are read for their tokens, of which there is no end."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        yield from sentences(20, 9)
        if self.passes > 1:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                yield "call"


def test_ctrl_c_while_tokens_are_taken(place: Path) -> None:
    """The first one ends it: no Ray was started, and nothing is left."""
    with pytest.raises(KeyboardInterrupt):
        raylens.fit_lens(Interrupted(), model=str(place / "m"), output=place / "none", quiet=True)
    assert not (place / "none").exists()


def test_help() -> None:
    """The command is listed under its name with a dash."""
    shown = raylens_command("--help").stdout
    assert "fit-lens" in shown
    assert "fit_lens" not in shown
    assert "--learning-rate" in raylens_command("fit-lens", "--help").stdout
