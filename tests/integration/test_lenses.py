"""Runs with another lens than the logit lens, by the command: what is stored, what a resume refuses, what is told at once."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import raylens
from raylens.storage.errors import ModelError, UsageError
from raylens.storage.layout import RunFolder
from raylens.storage.record import Record
from tests.command import raylens_command
from tests.lens_files import matrices, save_tuned, translators
from tests.tiny import sentences

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with a corpus, lenses of the tiny model, and a store with the run ``tuned``."""
    place = tmp_path_factory.mktemp("lenses")
    (place / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(PROMPTS, 5)))
    save_tuned(place / "tuned", translators(2, 64))
    save_tuned(place / "other", translators(2, 64, scale=0.1))
    torch.save({"J": matrices(2, 64)}, place / "j.pt")
    torch.save({"A": matrices(4, 64)}, place / "deeper.pt")
    done = run(place, tiny, "tuned", "--lens", "tuned:tuned")
    assert done.returncode == 0, done.stderr
    return place


def run(place: Path, model: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    common = ("-m", str(model), "-o", "st", "--name", name, "--positions", "all", "--logprobs", "float32", "--actors", "1")
    return raylens_command("run", "c.jsonl", *common, *arguments, cwd=place)


def difference(place: Path, one: str, other: str, layer: int) -> float:
    """The share of the places of resid_post at a layer where two runs have other best tokens."""
    store = raylens.open(place / "st")
    shares = []
    for record in store[one].records():
        second = store[other][record.id]
        assert isinstance(second, Record)
        pair = [found.taps["resid_post"].ids[layer, :, 0] for found in (record, second)]
        shares.append(float((pair[0] != pair[1]).mean()))
    return max(shares)


def test_run_with_a_tuned_lens(place: Path, tiny: Path) -> None:
    """Its records are what raylens.lens gives, the manifest has kind and content, and the last layer is the logit lens's."""
    assert run(place, tiny, "plain", "--taps", "resid_post", "--stats", "none").returncode == 0
    stored = raylens.open(place / "st")["tuned"]
    assert stored.counts()["records"] == PROMPTS
    lens = stored.manifest.identity["lens"]
    assert lens["kind"] == "tuned"
    assert len(lens["file"]) == 16
    assert stored.manifest.sources["lens"] == "tuned:tuned"
    assert stored.certificate is not None
    assert (stored.certificate["lens"]["kind"], stored.certificate["lens"]["file"]) == ("tuned", lens["file"])
    for record in stored.records():
        assert list(record.taps) == ["resid_post"]
        alone = raylens.lens(record.text, model=str(tiny), lens=f"tuned:{place / 'tuned'}").taps["resid_post"]
        np.testing.assert_allclose(record.taps["resid_post"].logprobs, alone.logprobs, atol=1e-4)
    assert difference(place, "tuned", "plain", 0) > 0.5
    assert difference(place, "tuned", "plain", 1) == 0
    assert "lens" not in raylens.open(place / "st")["plain"].manifest.sources
    # nothing that runs from before there were other lenses, heads and statistics lack, so that they resume
    known = {"kind", "component_norm", "top_k", "layers", "taps", "positions", "logprobs"}
    assert set(raylens.open(place / "st")["plain"].manifest.identity["lens"]) == known
    shown = raylens_command("show", "tuned", "--store", "st", cwd=place).stdout
    assert "kind tuned, component_norm own, top_k 10" in shown
    assert f"file {lens['file']}" in shown


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "lens.kind: tuned -> logit"),
        (("--lens", "tuned:other"), "lens.file: "),
        (("--lens", "jacobian:j.pt"), "lens.kind: tuned -> jacobian"),
    ],
)
def test_resume_with_another_lens_is_refused(place: Path, tiny: Path, arguments: tuple[str, ...], part: str) -> None:
    """The difference is shown, and nothing is changed."""
    before = RunFolder(place / "st" / "runs" / "tuned").manifest.read_bytes()
    refused = run(place, tiny, "tuned", *arguments)
    assert refused.returncode == 2
    assert part in refused.stderr
    assert "give --name" in refused.stderr
    assert RunFolder(place / "st" / "runs" / "tuned").manifest.read_bytes() == before


def test_the_same_lens_elsewhere_resumes(place: Path, tiny: Path) -> None:
    """What counts is the content of the files, not where they are."""
    shutil.copytree(place / "tuned", place / "elsewhere")
    done = run(place, tiny, "tuned", "--lens", "tuned:elsewhere", "--json")
    assert done.returncode == 0, done.stderr
    (start,) = (event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "start")
    assert start["done"] == PROMPTS


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("--lens", "tuned:nowhere"), 4, "nowhere/config.json: No such file or directory; give the folder that tuned-lens saved"),
        (("--lens", "linear:deeper.pt"), 4, "deeper.pt: has a matrix for layer 2, and the model has layers 0 to 1"),
        (("--lens", "jacobian:deeper.pt"), 4, "deeper.pt: has no tensor named J.LAYER (it has 'A.0', 'A.1', 'A.2')"),
        (("--lens", "tuned:tuned", "--taps", "mlp_out"), 2, "--taps mlp_out: the tuned lens does not read it"),
        (("--lens", "oracle"), 2, "--lens oracle: there is no such lens"),
    ],
)
def test_bad_lens_is_told_before_the_model_loads(
    place: Path, tiny: Path, arguments: tuple[str, ...], code: int, part: str
) -> None:
    """One line, and no Ray, server or actor."""
    done = run(place, tiny, "bad", *arguments)
    assert done.returncode == code, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert part in line
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stderr
    assert not (place / "st" / "runs" / "bad").exists()


def test_lens_of_a_run_from_python(place: Path, tiny: Path) -> None:
    """raylens.run takes a lens; one that is not there is told before anything starts."""
    with pytest.raises(ModelError, match=r"^lens: .*nowhere.pt: No such file or directory; check the path"):
        raylens.run(["call me"], model=str(tiny), store=place / "st", lens=f"linear:{place / 'nowhere.pt'}", quiet=True)
    with pytest.raises(UsageError, match=r"^taps mlp_out: the linear lens does not read it"):
        raylens.run(["call me"], model=str(tiny), store=place / "st", lens="linear:x", taps="mlp_out", quiet=True)


def test_lens_and_doctor(place: Path, tiny: Path) -> None:
    """Both commands take a lens; a tap it does not read is refused before the model loads."""
    given = ("-m", str(tiny), "--lens", "jacobian:j.pt")
    shown = raylens_command("lens", "call me ishmael", *given, "--json", cwd=place)
    assert shown.returncode == 0, shown.stderr
    assert list(json.loads(shown.stdout)["taps"]) == ["resid_post"]
    assert raylens_command("lens", "call me ishmael", *given, cwd=place).returncode == 0
    refused = raylens_command("lens", "call me ishmael", *given, "--tap", "attn_out", cwd=place)
    assert refused.returncode == 2
    assert "the jacobian lens does not read it" in refused.stderr
    doctor = raylens_command("doctor", *given, cwd=place)
    assert doctor.returncode == 0, doctor.stderr
    assert "--lens: jacobian" in doctor.stdout
    assert "fits; it reads resid_post\n" in doctor.stdout
    assert re.findall(r"tap (\w+): .*; this lens does not read it", doctor.stdout) == [
        "resid_pre",
        "attn_out",
        "resid_mid",
        "mlp_out",
    ]
    estimate = raylens_command("run", "c.jsonl", *given, "--dry-run", "--json", cwd=place)
    assert json.loads(estimate.stdout)["places"] == PROMPTS * 2
