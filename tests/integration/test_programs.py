"""Runs that a program begins, several of them or beside other work: they take turns, and leave the rest of it alone."""

import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import psutil
import pytest
import ray

import raylens
from raylens.scheduler.cluster import cluster
from tests.rays import own_env
from tests.running import command_line
from tests.waiting import HUNG

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import raylens

def run(name):
    done = raylens.run(["call me ishmael", "water"], model=sys.argv[1], store="st", name=name, ray="local", quiet=True)
    return done.counts()["records"]

with ThreadPoolExecutor(2) as pool:
    print(list(pool.map(run, ["a", "b"])))
"""


def test_runs_of_two_threads_take_turns(tmp_path: Path, tiny: Path) -> None:
    """Each starts a Ray of its own and ends it, and loads the same packages: both are complete."""
    command = [sys.executable, "-c", PROGRAM, str(tiny)]
    done = subprocess.run(command, cwd=tmp_path, env=own_env(tmp_path), capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[2, 2]\n"


def test_a_ray_is_joined_after_one_of_ones_own(tmp_path: Path, tiny: Path, ray_address: str) -> None:
    """The first is guarded by a token, which is forgotten with it; the second is not guarded."""
    for name, address in (("own", "local"), ("joined", ray_address)):
        run = raylens.run(["call me ishmael"], model=str(tiny), store=tmp_path / "st", name=name, ray=address, quiet=True)
        assert run.counts()["records"] == 1


def test_what_a_program_has_set_stays(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread finds its files at any moment of a run that starts Ray. Ray draws from Python's generator as it starts and
    ends, as does a client that waits for a server; a generator that was seeded goes on. ``breakpoint()`` does what it did before,
    for which Ray sets a variable."""
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    random.seed(0)
    expected = random.random()
    random.seed(0)
    before, seen = Path.cwd(), set()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(raylens.run, ["water"], model=str(tiny), store=tmp_path / "st", ray="local", quiet=True)
        while wait([run], timeout=0.002).not_done:
            seen.add(Path.cwd())
    assert run.result().counts()["records"] == 1
    assert seen == {before}
    assert random.random() == expected
    assert os.environ["PYTHONBREAKPOINT"] == "0"


def workers() -> set[psutil.Process]:
    """The processes that Rays of this process's own have for actors and tasks."""
    words = re.compile(r"^ray::(IDLE|Actor)|^\S*python\S* \S*default_worker\.py")
    return {one for one in psutil.Process().children(recursive=True) if words.search(command_line(one))}


class Actor:
    """Answers."""

    def answer(self) -> int:
        return 1


@pytest.mark.parametrize("address", ["", "local"])
def test_an_address_that_names_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """An empty RAY_ADDRESS is as none, and local is a Ray as any that is started here: it leaves no token in the user's home and
    no variable in the environment, and has no process that nothing runs in."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    variables, others = dict(os.environ), workers()
    with cluster("auto") as started:
        assert started.here
        assert ray.get(ray.remote(Actor).remote().answer.remote()) == 1
        assert len(workers() - others) == 1
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == variables
