"""Nodes of a cluster: those that lack raylens or have another one, and those that join and leave while a run goes on."""

import json
import re
import subprocess
import sys
import sysconfig
import venv
from contextlib import ExitStack
from pathlib import Path

import raylens
from raylens import __version__
from raylens.storage.layout import RunFolder
from raylens.storage.pulse import Pulse, read_pulse
from tests.command import raylens_command
from tests.rays import head, node, own_env
from tests.running import Running
from tests.servers import free_port, reach
from tests.tiny import sentences
from tests.waiting import HUNG, wait_until


def other_python(folder: Path, version: str | None, lacks: str | None = None) -> str:
    """An interpreter that has all packages of this one but raylens, or another raylens; or all but one."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = Path(sysconfig.get_paths()["purelib"])
    if lacks is not None:
        for path in here.iterdir():
            if not path.name.startswith(lacks) and not (packages / path.name).exists() and path.suffix != ".pth":
                (packages / path.name).symlink_to(path)
    else:  # a folder of a .pth file is searched, but its own .pth files, of which raylens's editable install is one, are not read
        (packages / "others.pth").write_text(f"{here}\n")
    if version is not None:
        (packages / "raylens").mkdir()
        (packages / "raylens" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    return str(folder / "bin" / "python")


def pulse(folder: Path) -> Pulse:
    found = read_pulse(RunFolder(folder / "st" / "runs" / "grown"))
    assert found is not None, "the driver lives"
    return found


def test_nodes_without_this_raylens(tmp_path: Path, tiny: Path) -> None:
    """The run ends with each node's address, what it lacks and the remedy; no actor was begun."""
    port, env = free_port(), own_env(tmp_path)
    del env["PYTHONPATH"]
    others = {"none": None, "old": "0.0.1", "poor": __version__}
    with ExitStack() as stack:
        stack.enter_context(head(tmp_path, port, env))
        for name, version in others.items():
            python = other_python(tmp_path / name, version, lacks="safetensors" if name == "poor" else None)
            stack.enter_context(node(tmp_path / f"{name}.log", env, "--address", f"127.0.0.1:{port}", python=python))
        arguments = ["--text", "hi", "-m", str(tiny), "--ray", f"127.0.0.1:{port}"]
        done = raylens_command("run", *arguments, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert done.returncode == 5, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert re.search(r"[0-9.]+ has no raylens", error), error
    assert re.search(rf"[0-9.]+ has raylens 0\.0\.1, and this is {re.escape(__version__)}", error), error
    assert re.search(r"[0-9.]+ lacks safetensors[.;]", error), error
    assert f"Install raylens=={__version__} there with pip" in error
    assert "loading the model" not in done.stderr, "no actor was begun"


def test_ray_client(tmp_path: Path, tiny: Path) -> None:
    """A driver that is on no node, through Ray Client: it needs a server that actors reach, and then runs as any other."""
    env, client, port = own_env(tmp_path), free_port(), free_port()
    with ExitStack() as stack:
        stack.enter_context(head(tmp_path, port, env, "--ray-client-server-port", str(client)))
        url = stack.enter_context(reach("valkey9", "password", tmp_path))
        arguments = ["--text", "hi", "-m", str(tiny), "-o", "st", "--name", "r", "--ray", f"ray://127.0.0.1:{client}"]

        def run(*more: str) -> "subprocess.CompletedProcess[str]":
            for _ in range(3):
                done = raylens_command("run", *arguments, *more, cwd=tmp_path, env=env)
                # Ray forks a process that has threads for each client, and now and then what it forks hangs or dies
                if not any(words in done.stderr for words in ("Starting Ray client server failed", "but it's a zombie")):
                    break
            return done

        refused = run()
        assert refused.returncode == 5, refused.stderr
        assert "which cannot reach the embedded server; give --redis URL" in refused.stderr
        done = run("--redis", url)
        assert done.returncode == 0, done.stderr
    assert raylens.open(tmp_path / "st")["r"].counts()["records"] == 1


def test_a_node_that_joins_and_one_that_leaves(tmp_path: Path, tiny: Path) -> None:
    """An actor begins on the new node while the run goes on; when that node is taken away the run still goes on.

    A node at another address, which may be another machine, gets none: it would not reach the embedded server.
    """
    port, env = free_port(), own_env(tmp_path)
    corpus, count = tmp_path / "c.jsonl", 20_000
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(count, 40)))
    options = [
        "-m",
        str(tiny),
        "-o",
        str(tmp_path / "st"),
        "--positions",
        "all",
        "--batch-tokens",
        "64",
        "--name",
        "grown",
        "--json",
    ]
    with ExitStack() as stack:
        stack.enter_context(head(tmp_path, port, env))
        address = f"127.0.0.1:{port}"
        run = stack.enter_context(Running(tmp_path / "run.log", "run", str(corpus), *options, "--ray", address, env=env))
        run.until("progress")
        wait_until(lambda: (pulse(tmp_path).actors, pulse(tmp_path).ready) == (1, 1), "the only actor is told to be ready")
        elsewhere = ("--address", address, "--node-ip-address", "127.0.0.3")
        stack.enter_context(node(tmp_path / "elsewhere.log", env, *elsewhere))
        with node(tmp_path / "node.log", env, "--address", address):
            run.until("waiting", "the cluster has grown: loading the model in 1 more actor")
            wait_until(lambda: pulse(tmp_path).ready == 2, "both actors are ready")
            assert pulse(tmp_path).actors == 2
        wait_until(lambda: pulse(tmp_path).deaths == 1, "the actor of the node that left is missed")
        run.until("progress")
        run.stop()  # to the end of so many prompts it is a while
        assert run.finish() == 130, run.stderr()
    stored = raylens.open(tmp_path / "st")["grown"]
    outcomes = [outcome.id for outcome in stored]
    assert 0 < len(outcomes) == len(set(outcomes)) < count, stored.counts()
    assert list(stored.failures()) == []


def test_a_run_waits_for_a_node_and_outlives_it(tmp_path: Path, tiny: Path) -> None:
    """A head without CPUs holds no actors: the run says what it waits for, to monitors too, and can be cancelled. When the only
    node leaves, it says so, and goes on with the next that joins; but it ends where one that joins has another raylens."""
    port, env, count = free_port(), own_env(tmp_path), 20_000
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(count, 40)))
    arguments = ["run", str(corpus), "-m", str(tiny), "-o", str(tmp_path / "st"), "--name", "grown", "--json"]
    arguments += ["--batch-tokens", "64", "--ray", f"127.0.0.1:{port}"]
    with ExitStack() as stack:
        stack.enter_context(head(tmp_path, port, env, cpus=0))
        first = stack.enter_context(Running(tmp_path / "first.log", *arguments, env=env))
        first.until("stage", "waiting up to ")
        wait_until(lambda: pulse(tmp_path).waiting == "waiting for a node of the cluster", "status says so")
        assert raylens_command("cancel", str(tmp_path / "st"), "grown").returncode == 0
        assert first.finish() == 130, first.stderr()
        second = stack.enter_context(Running(tmp_path / "second.log", *arguments, env=env))
        second.until("stage", "waiting up to ")
        with node(tmp_path / "left.log", env, "--address", f"127.0.0.1:{port}"):
            assert 0 < second.until("progress")["done"] < count
        second.until("waiting", "no actor is ready; Ray starts them again")
        stack.enter_context(node(tmp_path / "next.log", env, "--address", f"127.0.0.1:{port}"))
        wait_until(lambda: pulse(tmp_path).ready == 1, "an actor is on the node that joined")
        second.until("progress")
        del env["PYTHONPATH"]
        old = other_python(tmp_path / "old", "0.0.1")
        stack.enter_context(node(tmp_path / "old.log", env, "--address", f"127.0.0.1:{port}", python=old))
        assert second.finish() == 5, second.stderr()
    assert re.search(r"[0-9.]+ has raylens 0\.0\.1, and this is", second.stderr())
    outcomes = [outcome.id for outcome in raylens.open(tmp_path / "st")["grown"]]
    assert 0 < len(outcomes) == len(set(outcomes)) < count


NO_NODE = """
import ray
from raylens.scheduler import cluster
from raylens.storage.errors import ClusterError

cluster.NODE_SECONDS = 1
ray.init("local", num_cpus=0, include_dashboard=False, log_to_driver=False)
try:
    with cluster.cluster("local", print):
        print("a node has come")
except ClusterError as error:
    print(error)
"""


def test_no_node_joins(tmp_path: Path) -> None:
    """A program of its own, as Ray's token stays with the process that has had one."""
    command = [sys.executable, "-c", NO_NODE]
    done = subprocess.run(command, env=own_env(tmp_path), capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stderr
    waiting, error = done.stdout.splitlines()
    assert waiting == "waiting up to 1 s for a node of the cluster that can hold actors"
    assert error == "no node of the Ray cluster has a CPU for actors; start one, with ray start --address HEAD:PORT"


NOT_STARTED = """
import os
from raylens.scheduler.cluster import cluster
from raylens.storage.errors import ClusterError

for address in ("local", "127.0.0.1:1"):
    before = dict(os.environ)
    try:
        with cluster(address):
            print("it has started")
    except ClusterError as error:
        print(error)
    print(sorted(set(os.environ.items()) ^ set(before.items())))
"""


def test_a_ray_that_does_not_start_changes_nothing(tmp_path: Path) -> None:
    """Its variables, such as that of a local Ray's token, would go to each Ray that the program starts by itself."""
    env = own_env(tmp_path) | {"TMPDIR": str(tmp_path / ("long" * 30))}
    Path(env["TMPDIR"]).mkdir()
    command = [sys.executable, "-c", NOT_STARTED]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stderr
    long, left, unreachable, left_too = done.stdout.splitlines()
    assert long.endswith("; set TMPDIR to a shorter path, such as /tmp")
    assert unreachable.startswith("--ray 127.0.0.1:1: ")
    assert left == left_too == "[]"
