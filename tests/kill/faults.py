"""What can go wrong, a function each. Durations are those of the fault, drawn from the seed."""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from random import Random

import msgspec
import psutil

from raylens.storage.writer import Orders
from tests.kill.stage import RATE, Stage
from tests.waiting import HUNG


def _hold(seconds: float) -> None:
    threading.Event().wait(seconds)


def kill_actor(stage: Stage, rng: Random) -> None:
    """SIGKILL an actor."""
    stage.find("actor")
    rng.choice(stage.actors() or [stage.find("actor")]).kill()


def kill_writer(stage: Stage, rng: Random) -> None:
    """SIGKILL the writer."""
    stage.find("writer").kill()


def freeze_writer(stage: Stage, rng: Random) -> None:
    """The writer stands still for a while."""
    writer = stage.find("writer")
    with suppress(psutil.NoSuchProcess):
        writer.suspend()
        _hold(rng.uniform(1, 8))
        writer.resume()


def restart_server(stage: Stage, rng: Random) -> None:
    """SIGKILL the server; it comes back with what it had written down."""
    stage.server.kill()
    _hold(rng.uniform(0, 2))
    stage.server.start()


def wipe_server(stage: Stage, rng: Random) -> None:
    """SIGKILL the server; it comes back empty."""
    stage.server.kill()
    stage.server.wipe()
    _hold(rng.uniform(0, 2))
    stage.server.start()


def freeze_server(stage: Stage, rng: Random) -> None:
    """The server stands still for a while."""
    stage.server.freeze()
    _hold(rng.uniform(1, 8))
    stage.server.thaw()


def stall_network(stage: Stage, rng: Random) -> None:
    """Nothing passes for a while; connections stay."""
    stage.proxy.stall()
    _hold(rng.uniform(1, 8))
    stage.proxy.flow()


def reset_network(stage: Stage, rng: Random) -> None:
    """Every connection breaks, also within a message."""
    stage.proxy.reset()


def slow_network(stage: Stage, rng: Random) -> None:
    """The network is eight times slower for a while."""
    stage.proxy.rate = RATE / 8
    _hold(rng.uniform(2, 8))
    stage.proxy.rate = RATE


def kill_driver(stage: Stage, rng: Random) -> None:
    """SIGKILL the driver; the same command resumes."""
    stage.keep_running()
    assert stage.driver is not None
    stage.driver.kill()
    stage.driver.wait()


def remove_node(stage: Stage, rng: Random) -> None:
    """A machine of the cluster is gone, with all its processes; later another joins."""
    node = rng.choice(sorted(stage.nodes.worker_nodes, key=lambda node: str(node.unique_id)))
    stage.nodes.remove_node(node, allow_graceful=False)
    _hold(rng.uniform(0, 4))
    stage.nodes.add_node(num_cpus=1)


def rival_writer(stage: Stage, rng: Random) -> None:
    """Another writer takes the run over, and ends after a while."""
    stage.find("writer")
    command = [sys.executable, "-P", "-m", "raylens.storage.writer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as rival:
        assert rival.stdin is not None
        rival.stdin.write(msgspec.json.encode(Orders(str(stage.run_folder.root), stage.server.url)) + b"\n")
        rival.stdin.flush()
        _hold(rng.uniform(1, 5))


def full_disk(stage: Stage, rng: Random) -> None:
    """The store's disk is full until the run has ended with an error."""
    writer, driver = stage.find("writer"), stage.driver
    assert driver is not None
    with suppress(psutil.NoSuchProcess):
        stage.disk.fill(writer)
    driver.wait(timeout=HUNG)
    stage.disk.free()


Fault = Callable[[Stage, Random], None]

#: Each fault, and how often it comes.
FAULTS: dict[Fault, int] = {
    kill_actor: 5,
    kill_writer: 5,
    freeze_writer: 2,
    restart_server: 3,
    wipe_server: 3,
    freeze_server: 2,
    stall_network: 2,
    reset_network: 3,
    slow_network: 2,
    kill_driver: 2,
    remove_node: 2,
    rival_writer: 1,
    full_disk: 1,
}
