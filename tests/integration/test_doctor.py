"""``raylens doctor`` on this machine as it is, and with each thing set wrong."""

import json
import re
from pathlib import Path
from typing import Any

from tests.command import raylens_command

NAMES = [
    "versions",
    "devices",
    "compiled code",
    "memory",
    "shared memory",
    "temporary folder",
    "store",
    "fonts",
    "demo model",
    "redis",
    "ray",
]


def findings(*options: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code, and what was found by name."""
    done = raylens_command("doctor", "--json", *options, env=env)
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)["findings"]}


def test_a_machine_that_runs_tests_can_run(tmp_path: Path) -> None:
    """Nothing is a problem; the server and Ray were really there."""
    code, found = findings("-s", str(tmp_path / "store"), "--ray", "local")
    assert code == 0
    assert list(found) == NAMES
    assert all(one["status"] != "problem" for one in found.values())
    assert "1.0 GiB at most" in found["redis"]["found"]
    assert re.fullmatch(r"1 node, [1-9]\d* CPUs, \d+ GPUs", found["ray"]["found"])
    assert not (tmp_path / "store").exists()


def test_what_does_not_work_is_named_with_a_remedy(tmp_path: Path) -> None:
    """A server and a cluster that are not there, a folder too long for sockets, a store that is a file; no password is shown."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    (tmp_path / "file").touch()
    options = ("-s", str(tmp_path / "file"), "--redis", "redis://:hunter2@127.0.0.1:1", "--ray", "127.0.0.1:1")
    code, found = findings(*options, env={"TMPDIR": str(long)})
    assert code == 1
    assert {name for name, one in found.items() if one["status"] == "problem"} == {"temporary folder", "store", "redis", "ray"}
    assert all(one["remedy"] for one in found.values() if one["status"] != "ok")
    assert "hunter2" not in json.dumps(found)


def test_what_would_change_nothing_is_refused() -> None:
    """Of a model without one, and of the machine with one; a store that the environment names is passed over."""
    done = raylens_command("doctor", "--lens", "tuned:somewhere")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: --lens: applies to a model; give --model too")
    done = raylens_command("doctor", "-m", "nosuch", "--redis", "redis://127.0.0.1:1", env={"RAYLENS_STORE": "st"})
    told = "Error: --redis: is not used with --model; leave one of them out"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, told)


def test_for_eyes_a_line_each(tmp_path: Path) -> None:
    """With the remedy below."""
    done = raylens_command("doctor", "-s", str(tmp_path), "--redis", "redis://127.0.0.1:1", "--ray", "local")
    assert done.returncode == 1
    assert [name for name in NAMES if f"  {name} " in done.stdout] == NAMES
    assert "-> correct --redis" in done.stdout
