"""Runs of an edited model, by the command: what is stored, what a resume refuses, what two runs side by side show."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import raylens
from raylens.storage.errors import UsageError
from raylens.storage.layout import RunFolder
from raylens.storage.pages.page import record_page
from raylens.storage.record import Record
from tests.command import raylens_command
from tests.tiny import sentences

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = 5
#: Of the second of two layers, whose middle residual is the first thing that changes.
EDIT = "edits: [{tap: attn_out, layers: 1, positions: last, add: {prompt: the watery part, scale: 2}}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with a corpus, an intervention, and a store with the runs ``plain`` and ``steered``."""
    place = tmp_path_factory.mktemp("interventions")
    (place / "c.jsonl").write_text(
        "".join(json.dumps({"id": f"p{n}", "text": text}) + "\n" for n, text in enumerate(sentences(PROMPTS, 5)))
    )
    (place / "steer.yaml").write_text(EDIT)
    for name, given in (("plain", ()), ("steered", ("--intervene", "steer.yaml"))):
        done = run(place, tiny, name, *given)
        assert done.returncode == 0, done.stderr
    return place


def run(place: Path, model: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    common = ("-m", str(model), "-o", "st", "--name", name, "--positions", "all", "--logprobs", "float32", "--actors", "1")
    return raylens_command("run", "c.jsonl", *common, "--stats", "next_logprob", *arguments, cwd=place)


def test_run_of_an_edited_model(place: Path, tiny: Path) -> None:
    """Its records are what raylens.lens gives; the manifest has the edits, and the certificate the hash of what was read."""
    store = raylens.open(place / "st")
    steered = store["steered"]
    assert steered.counts()["records"] == PROMPTS
    section = steered.manifest.identity["intervention"]
    assert section["1"] == {
        "tap": "attn_out",
        "layers": "1",
        "positions": "last",
        "add": {"prompt": "the watery part", "position": "last", "scale": 2.0},
    }
    assert len(section["digest"]) == 16
    assert steered.manifest.sources["intervention"] == "steer.yaml"
    assert steered.certificate["intervention"]["edits"] == 1
    assert len(steered.certificate["intervention"]["sources"]) == 16
    for record in steered.records():
        alone = raylens.lens(record.text, model=str(tiny), intervene=place / "steer.yaml")
        plain = store["plain"][record.id]
        assert isinstance(plain, Record)
        for tap, lens in record.taps.items():
            np.testing.assert_allclose(lens.logprobs, alone.taps[tap].logprobs, atol=1e-4)
            assert np.abs(lens.logprobs[:, :-1] - plain.taps[tap].logprobs[:, :-1]).max() < 1e-4  # only the last is edited
            assert np.abs(lens.logprobs[0] - plain.taps[tap].logprobs[0]).max() < 1e-4
            assert np.abs(lens.logprobs[1, -1] - plain.taps[tap].logprobs[1, -1]).max() > 1e-2
    # a run of the model as it is has nothing that runs from before there were interventions lack
    assert set(store["plain"].manifest.identity) == {"model", "lens", "input", "corpus"}
    assert "intervention" not in store["plain"].manifest.sources


def test_compare_shows_the_effect_by_layer(place: Path) -> None:
    """Nothing before the edited layer; from there on agreement falls and logprobs change, in the table and the picture."""
    shown = raylens_command("compare", "plain", "steered", "--store", "st", "--json", cwd=place)
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    before, after = ([row for row in rows if row["layer"] == layer] for layer in (0, 1))
    assert {row["tap"] for row in after} == {"attn_out", "resid_mid", "mlp_out", "resid_post"}
    none = pytest.approx(0, abs=1e-6)  # how rows are shared out among threads shows in the last bits
    for row in before:
        assert (row["agreement"], row["overlap"]) == (1, 1)
        assert (row["logprob_change"], row["next_logprob_change"]) == (none, none)
    for row in after:
        assert row["agreement"] < 1
        assert row["logprob_change"] != none
        assert row["next_logprob_change"] == none  # of positions that have a next token none is edited
    drawn = raylens_command(*("plot", "plain", "--kind", "compare", "--against", "steered", "-s", "st", "-o", "c.svg"), cwd=place)
    assert drawn.returncode == 0, drawn.stderr
    picture = (place / "c.svg").read_text()
    assert ") against run steered (" in picture
    assert "mean logprob in nats of plain's top token, steered less plain" in picture


def test_titles(place: Path) -> None:
    """Pictures, pages and show say that the model was edited, and only where it was."""
    store = raylens.open(place / "st")
    for name, edited in (("steered", True), ("plain", False)):
        record = store[name]["p0"]
        assert isinstance(record, Record)
        assert (", edited" in record_page(store[name], record).partition("</title>")[0]) == edited
        drawn = raylens_command("plot", f"{name}/p0", "-s", "st", "-o", f"{name}.svg", cwd=place)
        assert drawn.returncode == 0, drawn.stderr
        assert (f", edited · run {name} · prompt p0" in (place / f"{name}.svg").read_text()) == edited
        shown = raylens_command("show", name, "--store", "st", cwd=place).stdout
        assert ("of an edited model" in shown) == edited
        assert ("intervention: digest " in shown) == edited


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("steered", None, ("intervention.1: {'tap': 'attn_out'", "-> None", "intervention.digest: ")),
        ("steered", EDIT.replace("scale: 2", "scale: 3"), ("'scale': 2.0}} -> ", "'scale': 3.0}}")),
        ("plain", EDIT, ("intervention.1: None -> {'tap': 'attn_out'",)),
    ],
)
def test_resume_with_another_intervention_is_refused(
    place: Path, tiny: Path, name: str, text: str | None, parts: tuple[str, ...]
) -> None:
    """The difference is shown, and nothing is changed."""
    before = RunFolder(place / "st" / "runs" / name).manifest.read_bytes()
    if text is not None:
        (place / "other.yaml").write_text(text)
    refused = run(place, tiny, name, *(() if text is None else ("--intervene", "other.yaml")))
    assert refused.returncode == 2
    assert all(part in refused.stderr for part in (*parts, "give --name")), refused.stderr
    assert RunFolder(place / "st" / "runs" / name).manifest.read_bytes() == before


def test_the_same_edits_in_another_file_resume(place: Path, tiny: Path) -> None:
    """What counts is what the file says."""
    edit = {"add": {"scale": 2.0, "prompt": "the watery part"}, "tap": "attention_mechanism", "layers": "1", "positions": "last"}
    (place / "same.json").write_text(json.dumps({"edits": [edit]}))
    done = run(place, tiny, "steered", "--intervene", "same.json", "--json")
    assert done.returncode == 0, done.stderr
    (start,) = (event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "start")
    assert start["done"] == PROMPTS


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("edits: [{tap: attn_out, layers: 2, scale: 0}]", "--intervene: edits[0].layers: '2': the model has layers 0 to 1"),
        (
            "edits: [{tap: attn_out, layers: 1, add: {values: [1.0]}}]",
            "edits[0].add: a vector of 1 numbers; the model's residual has 64",
        ),
        (
            "edits: [{tap: attn_out, layers: 1}]",
            "--intervene bad.yaml: edits[0]: has no change; give one of add, scale, zero, patch",
        ),
        ("edits: [", "--intervene bad.yaml: line 1: not YAML"),
    ],
)
@pytest.mark.parametrize("command", ["run", "lens"])
def test_a_bad_file_is_told_before_the_model_loads(place: Path, tiny: Path, command: str, text: str, part: str) -> None:
    """One line, and no Ray, server or actor."""
    (place / "bad.yaml").write_text(text)
    if command == "run":
        done = run(place, tiny, "bad", "--intervene", "bad.yaml")
    else:
        done = raylens_command("lens", "call me", "-m", str(tiny), "--intervene", "bad.yaml", cwd=place)
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert part in line
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stderr
    assert not (place / "st" / "runs" / "bad").exists()


def test_prompts_of_another_length(place: Path, tiny: Path) -> None:
    """What cannot be patched position by position is a failure with its reason, and the run goes on."""
    edits = {"edits": [{"tap": "resid_post", "layers": 0, "patch": {"prompt": "call me ishmael", "position": "each"}}]}
    texts = [{"id": "fits", "text": "call me ishmael"}, {"id": "long", "text": "call me ishmael some years ago"}]
    found = raylens.run(texts, model=str(tiny), store=place / "st", name="patched", intervene=edits, quiet=True)
    assert isinstance(found["fits"], Record)
    (failure,) = found.failures()
    assert (failure.id, failure.kind) == ("long", "input")
    assert "edits[0] patches each position from a prompt of" in failure.message
    assert "intervention" not in found.manifest.sources  # there was no file
    with pytest.raises(UsageError, match=r"intervention\.1: "):
        raylens.run(texts, model=str(tiny), store=place / "st", name="patched", actors=1, quiet=True)
