"""The certificate of a run: the first actor's, and how those read that do it in another way."""

from pathlib import Path
from typing import Any

import pytest

from raylens.storage.certificate import MOST, read_certificate, write_certificate
from raylens.storage.layout import RunFolder
from raylens.storage.manifest import create_or_resume
from raylens.storage.verify import examine
from tests.builders import make_manifest
from tests.command import raylens_command


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "demo")
    create_or_resume(folder, make_manifest())
    return folder


def measured(path: str, device: str = "cpu", error: float = 3e-5) -> dict[str, Any]:
    """Of an actor that reads so."""
    return {"device": device, "run_taps": ["resid_post"], "lens": {"path": path, "error": error}}


def test_actors_that_read_alike_have_one_certificate(folder: RunFolder) -> None:
    """The first one's, whatever the others measured; it says of no other."""
    write_certificate(folder, measured("by panels"))
    write_certificate(folder, measured("by panels", error=4e-5))
    assert read_certificate(folder) == measured("by panels")
    assert "other actors" not in raylens_command("show", "demo", "-s", str(folder.root.parents[1])).stdout


def test_each_other_way_is_told_once(folder: RunFolder) -> None:
    """Another path, and the same one on another device; each with its error; the file is sealed anew."""
    for _ in range(2):
        for actor in (measured("by panels"), measured("one kernel", "cuda", 2e-4), measured("by panels", "cuda")):
            write_certificate(folder, actor)
    found = read_certificate(folder)
    assert {**found, "others": []} == {**measured("by panels"), "others": []}
    ways = [
        {"device": "cuda", "lens": {"path": path, "error": error}} for path, error in (("one kernel", 2e-4), ("by panels", 3e-5))
    ]
    assert found["others"] == ways
    assert not examine(folder).damage
    lines = raylens_command("show", "demo", "-s", str(folder.root.parents[1])).stdout.splitlines()
    assert "other actors, on cuda: last lens against the model's logits: 2.0e-04; one kernel" in lines


def test_there_is_an_end_to_other_ways(folder: RunFolder) -> None:
    """Machines that measure something else each time do not make the file grow for ever."""
    for number in range(3 * MOST):
        write_certificate(folder, measured(f"within {number}"))
    assert len(read_certificate(folder)["others"]) == MOST


@pytest.mark.parametrize("text", ['{"device": "cpu"', "[]", '{"device": "cpu", "sha256": "0"}'])
def test_a_damaged_one_is_left_for_verify(folder: RunFolder, text: str) -> None:
    """A run goes on with it, and changes nothing of what verify is to find."""
    folder.certificate.write_text(text)
    write_certificate(folder, measured("by panels"))
    assert folder.certificate.read_text() == text
    assert examine(folder).damage


@pytest.mark.parametrize("text", ["{}", '{"others": 3}', '{"others": [3, {}], "lens": 3}', '{"others": [{"lens": 3}]}'])
def test_what_another_tool_wrote_can_be_added_to(folder: RunFolder, text: str) -> None:
    """Whatever stands where others should: show prints it, and an actor's way comes to it."""
    folder.certificate.write_text(text)
    assert raylens_command("show", "demo", "-s", str(folder.root.parents[1])).returncode == 0
    write_certificate(folder, measured("by panels"))
    assert "by panels" in raylens_command("show", "demo", "-s", str(folder.root.parents[1])).stdout
