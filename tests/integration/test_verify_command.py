"""``raylens verify`` on a store that real runs have made: damage is named, mended, and computed again by the same command."""

import json
from pathlib import Path

import pytest

import raylens
from raylens.storage.record import Record
from tests.builders import same
from tests.command import raylens_command
from tests.tiny import sentences

pytestmark = pytest.mark.usefixtures("shared_ray")


def test_a_damaged_segment_costs_only_its_records(tmp_path: Path, tiny: Path) -> None:
    """Flip a byte: verify exits 6 and names the segment; --repair keeps the rest, run computes one, verify is clean."""
    store, texts = str(tmp_path / "st"), [word for text in sentences(6, 4) for word in ("--text", text)]
    run = ("run", "-m", str(tiny), "-o", store, "--name", "r", "--actors", "1", *texts)
    assert raylens_command(*run).returncode == 0
    before = {outcome.id: outcome for outcome in raylens.open(store)["r"]}
    clean = raylens_command("verify", store)
    assert (clean.returncode, clean.stdout.split()[-1]) == (0, "good"), clean.stderr

    segment = sorted((tmp_path / "st" / "runs" / "r" / "records").iterdir())[0]
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    damaged = raylens_command("verify", store)
    assert damaged.returncode == 6
    assert f"damaged {segment}: crc32 is not that of its commit; 1 of" in damaged.stdout
    (value,) = json.loads(raylens_command("verify", store, "--json").stdout)
    assert (value["records"], value["lost"], len(value["damage"])) == (5, 1, 1)

    mended = raylens_command("verify", store, "--repair")
    assert mended.returncode == 0, mended.stderr
    assert "kept" in mended.stderr
    assert (tmp_path / "st" / "runs" / "r" / "damaged" / segment.name).read_bytes() == data
    kept = raylens.open(store)["r"]
    assert len(kept) == 5
    assert all(same(outcome, before[outcome.id]) for outcome in kept)

    again = raylens_command(*run, "--json")
    assert again.returncode == 0, again.stderr
    assert next(one["done"] for one in map(json.loads, again.stdout.splitlines()) if one["event"] == "start") == 5
    whole = raylens.open(store)["r"]
    assert {record.id for record in whole.records()} == before.keys()
    assert all(isinstance(outcome, Record) for outcome in whole)
    assert raylens_command("verify", store).returncode == 0


@pytest.mark.parametrize("arguments", [("--run", "nope"), ("--nope",)])
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A run that is not there and an unknown option are usage errors."""
    (tmp_path / "runs").mkdir()
    assert raylens_command("verify", str(tmp_path), *arguments).returncode == 2


def test_a_gap_stops_a_resume_too(tmp_path: Path, tiny: Path) -> None:
    """A run with a commit missing is not gone on with, but mended first."""
    store = tmp_path / "st"
    run = ("run", "-m", str(tiny), "-o", str(store), "--name", "r", "--actors", "1", "--text", "call me ishmael")
    assert raylens_command(*run).returncode == 0
    (store / "runs" / "r" / "commits" / "000000000.json").unlink()
    refused = raylens_command(*run)
    assert refused.returncode == 6
    assert "verify --repair" in refused.stderr
    assert raylens_command("verify", str(store), "--repair").returncode == 0
    assert raylens_command(*run).returncode == 0
