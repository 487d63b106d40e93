"""``Run.plot``: what the command draws, from Python, in memory or into a file, and as a notebook shows it."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raylens.storage.errors import UsageError
from raylens.storage.plots.canvas import DPI
from raylens.storage.record import Record
from raylens.storage.run import Run
from tests.builders import commit_outcomes, make_failure, make_record, make_run
from tests.command import raylens_command
from tests.queried import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("store"), name="one")


@pytest.fixture(scope="module")
def record(run: Run) -> Record:
    return next(run.records())


@pytest.mark.parametrize(
    ("choices", "options"),
    [
        ({}, []),
        ({"kind": "rank", "important": 2, "pages": True}, ["--kind", "rank", "--important", "2", "--pages"]),
        ({"positions": 1, "stat": "entropy", "layer_step": 2}, ["--positions", "1", "--stat", "entropy", "--layer-step", "2"]),
        ({"kind": "trajectory", "token": [1, "id:2"]}, ["--kind", "trajectory", "--token", "id:1", "--token", "id:2"]),
    ],
    ids=["grid", "rank", "positions", "tokens"],
)
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_what_the_command_draws(
    run: Run, record: Record, tmp_path: Path, suffix: str, choices: dict[str, Any], options: list[str]
) -> None:
    """Byte for byte, into the same files."""
    drawn = run.plot(record.id, output=tmp_path / f"python.{suffix}", **choices)
    command = ["plot", f"one/{record.id}", "-s", str(run.folder.root.parents[1]), "-o", str(tmp_path / f"command.{suffix}")]
    done = raylens_command(*command, *options)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name.replace("command", "python") for path in paths] == [path.name for path in drawn.paths]
    assert [path.read_bytes() for path in paths] == drawn.pages == [path.read_bytes() for path in drawn.paths]


def test_arrays_and_numbers_of_other_libraries(run: Run, record: Record) -> None:
    """Draw what the lists and numbers that they hold would."""
    for plain, other in (
        ({"positions": 1, "layer_step": 2}, {"positions": np.int64(1), "layer_step": np.uint8(2)}),
        ({"kind": "trajectory", "token": [1, 2]}, {"kind": "trajectory", "token": np.array([1, 2])}),
        ({"kind": "rank", "important_threshold": 0.5}, {"kind": "rank", "important_threshold": np.float32(0.5)}),
    ):
        assert run.plot(record.id, **plain).pages == run.plot(record.id, **other).pages  # type: ignore[arg-type]
    assert record.plot("trajectory", token=np.array([1])).pages == record.plot("trajectory", token=1).pages  # type: ignore[arg-type]


def test_a_notebook_shows_it(run: Run, record: Record, tmp_path: Path) -> None:
    """A PNG in memory, as large as it is on paper; an SVG as text; of a PDF the name of its file."""
    drawn = run.plot(record.id)
    assert (drawn.format, drawn.paths) == ("png", [])
    data, size = drawn._repr_png_() or (b"", {})
    with Image.open(BytesIO(data)) as image:
        assert image.size == pytest.approx((size["width"] * DPI / 96, size["height"] * DPI / 96), abs=1)
    assert drawn._repr_svg_() is None
    svg = run.plot(record.id, output=tmp_path / "x.svg")
    assert svg._repr_png_() is None
    assert (svg._repr_svg_() or "").startswith("<?xml")
    pdf = run.plot(record.id, output=tmp_path / "x.pdf")
    assert (pdf._repr_png_(), pdf._repr_svg_()) == (None, None)
    assert str(tmp_path / "x.pdf") in repr(pdf)
    assert "%PDF" not in repr(pdf)


def test_the_kind_is_that_of_what_is_named(run: Run, record: Record, tmp_path: Path) -> None:
    """A prompt is a grid, a run curves, two runs their difference."""
    other = write_run(tmp_path, name="other", lens_seed=4)
    assert run.plot(record.id).pages == run.plot(record.id, "grid").pages
    assert run.plot().pages == run.plot(kind="aggregate").pages
    assert run.plot(against=other).pages == run.plot(kind="compare", against=other).pages


def test_a_picture_of_a_prompt_names_its_run(run: Run, record: Record, tmp_path: Path) -> None:
    """Runs of one model over the same prompts have pictures that can be told apart."""
    svg = run.plot(record.id, output=tmp_path / "x.svg").pages[0].decode()
    assert f"<title>{run.manifest.title} · run {run.name} · prompt " in svg


@pytest.mark.parametrize(
    ("prompt", "choices", "part"),
    [
        (True, {"kind": "pie"}, "kind pie: choose from attribution, grid, rank, trajectory, aggregate, compare"),
        (True, {"kind": "aggregate"}, "kind aggregate draws a whole run, and .* is a prompt"),
        (True, {"by": "kind"}, "by: does not go with kind grid"),
        (True, {"important": 2}, "important: does not go with kind grid"),
        (True, {"kind": "rank", "token": 0}, "token: does not go with kind rank"),
        (True, {"layer_step": -1}, "layer_step -1: give a number from 1"),
        (True, {"kind": "rank", "important": 0}, "important 0: give a number from 1"),
        (True, {"output": "x.jpg"}, r"x\.jpg: the name of a picture must end in \.png, \.svg or \.pdf"),
        (True, {"positions": [1, 2]}, "positions"),
        (True, {"tap": ["mlp_out"]}, r"tap: give the name of one tap, not list \"\['mlp_out'\]\""),
        (True, {"layer_step": "2"}, "layer_step: give a whole number, not str '2'"),
        (True, {"layer_step": True}, "layer_step: give a whole number"),
        (True, {"kind": "rank", "important": 1.5}, "important: give a whole number, not float '1.5'"),
        (True, {"kind": "rank", "important_threshold": "3"}, "important_threshold: give a number"),
        (False, {"by": 3}, "by: give text, not int '3'"),
        (False, {"against": "other"}, r"against: give a run, such as store\['name'\], not str 'other'"),
        (False, {"kind": "rank"}, "kind rank draws one prompt: name one of run 'one'"),
        (False, {"tap": "mlp_out"}, "tap: does not go with kind aggregate"),
        (False, {"kind": "compare"}, "kind compare needs the other run"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Run, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: bool, choices: dict[str, Any], part: str
) -> None:
    """By the name of the option, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=part):
        run.plot(record.id if prompt else None, **choices)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", [0, ["x"], None])
def test_only_a_text_is_a_prompts_id(run: Run, record: Record, what: Any) -> None:
    """Nor is a record or a list of ids, which no dictionary looks up."""
    with pytest.raises(UsageError, match=r"run 'one' has no prompt .*; it has "):
        run.plot(record if what is None else what)


def test_a_failed_prompt_has_no_picture(tmp_path: Path) -> None:
    """Why it failed is said."""
    folder, _ = make_run(tmp_path)
    failure = make_failure()
    commit_outcomes(folder, failure)
    with pytest.raises(UsageError, match=f"has no record: it failed \\({failure.kind}\\)"):
        Run(folder).plot(failure.id)


def test_a_record_of_no_run(run: Run, record: Record, tmp_path: Path) -> None:
    """As ``raylens.lens`` gives one: with its text as the title, or another, and tokens by text or id."""
    drawn = record.plot(output=tmp_path / "x.svg", token=1, stat="logprob")
    assert drawn.paths == [tmp_path / "x.svg"]
    svg = drawn.pages[0].decode()
    assert f"<title>{record.text}</title>" in svg
    assert f">prompt {record.id}<" in svg
    assert b">Mine<" in record.plot("rank", tmp_path / "y.svg", title="Mine").pages[0]
    assert record.plot(token="id:1").pages == record.plot(token=[1]).pages
    with pytest.raises(UsageError, match="kind aggregate draws a whole run; choose from attribution, grid, rank, trajectory"):
        record.plot("aggregate")
    with pytest.raises(UsageError, match=r"^token 'no such token'"):
        record.plot(token="no such token")
    with pytest.raises(UsageError, match=r"^token 'field:right': a run knows .*; plot the prompt by its run"):
        record.plot(token="field:right")
    with pytest.raises(UsageError, match="this record is without its vocabulary"):
        make_record(0).plot()
