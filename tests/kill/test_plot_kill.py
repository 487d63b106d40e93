"""``raylens plot --all`` killed while its processes draw, or stopped while they begin."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.broken_pools import run_broken
from tests.builders import commit_outcomes, make_record, make_run
from tests.running import Running
from tests.waiting import HUNG, wait_until


def drawing(folder: Path, pictures: Path) -> Running:
    """The command at work on a run of many prompts."""
    run, _ = make_run(folder / "store", 400)
    commit_outcomes(run, *(make_record(index, tokens=20) for index in range(400)))
    return Running(folder / "log", "plot", "demo", "--all", "-o", str(pictures), "-s", str(folder / "store"))


def test_no_process_outlives_the_command(tmp_path: Path) -> None:
    """What could not end them ends them: they see that it is gone."""
    pictures = tmp_path / "pictures"
    with drawing(tmp_path, pictures) as running:
        wait_until(lambda: pictures.exists() and any(pictures.iterdir()), "the first picture is there")
        children = running.children("multiprocessing")
        assert len(children) > 1
        running.process.kill()
        _, alive = psutil.wait_procs(children, timeout=HUNG)
        assert not alive
    assert len(list(pictures.iterdir())) < 400


def test_ctrl_c_is_for_the_command(tmp_path: Path) -> None:
    """Its terminal sends it to all, also to processes that import what they draw with: one of them says a word, in one line."""
    with drawing(tmp_path, tmp_path / "pictures") as running:
        wait_until(lambda: len(running.children("multiprocessing.spawn")) > 1, "they have begun")
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(timeout=HUNG) == 130
        assert running.stderr() == "stopped\n"


#: The command with two processes, however many cores are here.
TWO_DRAW = """
import sys
from raylens.scheduler.cli import main
from raylens.storage.plots import many
many.cores = lambda: 2
sys.argv[1:] = ["plot", "demo", "--all", "-o", {pictures!r}, "-s", {store!r}]
main()
"""

#: Before it: Ctrl-C while a process is begun, which runs then and has not been told what for.
INTERRUPTED = """
import os, signal, sys
from multiprocessing import util
begin = util.spawnv_passfds
def interrupted(path, command, passed):
    process = begin(path, command, passed)
    if b"spawn_main" in b"".join(os.fsencode(word) for word in command):
        os.kill(os.getpid(), signal.SIGINT)
    return process
util.spawnv_passfds = interrupted
"""


def test_ctrl_c_while_a_process_is_begun(tmp_path: Path) -> None:
    """It is begun before the command ends: half begun, it would end by a traceback of its own."""
    run, _ = make_run(tmp_path / "store", 40)
    commit_outcomes(run, *(make_record(index) for index in range(40)))
    program = INTERRUPTED + TWO_DRAW.format(pictures=str(tmp_path / "pictures"), store=str(tmp_path / "store"))
    command = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HUNG, check=False)
    assert (command.returncode, command.stderr) == (130, "stopped\n")


def test_a_process_that_draws_is_killed(tmp_path: Path) -> None:
    """As the kernel does where memory is short: one line says so, and the others end."""
    pictures = tmp_path / "pictures"
    with drawing(tmp_path, pictures) as running:
        wait_until(lambda: pictures.exists() and any(pictures.iterdir()), "the first picture is there")
        children = running.children("multiprocessing.spawn")
        children[0].kill()
        assert running.process.wait(timeout=HUNG) == 1
        _, alive = psutil.wait_procs(children, timeout=HUNG)
        assert not alive
        (error,) = running.stderr().splitlines()
    assert error.startswith(f"Error: {pictures}: a process that drew pictures was killed, most likely for want of memory; ")


@pytest.mark.parametrize("before", [True, False])
def test_a_process_that_draws_is_killed_while_another_starts(tmp_path: Path, before: bool) -> None:
    """The command is not left waiting for the one that its pool began as it broke."""
    run, _ = make_run(tmp_path / "store", 40)
    commit_outcomes(run, *(make_record(index) for index in range(40)))
    pictures = tmp_path / "pictures"
    code, log = run_broken(TWO_DRAW.format(pictures=str(pictures), store=str(tmp_path / "store")), before)
    assert code == 1
    assert log.startswith(f"Error: {pictures}: a process that drew pictures was killed, most likely for want of memory; ")
