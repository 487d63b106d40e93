"""The Ray cluster of a run: joined, or started on this machine."""

import atexit
import contextlib
import os
import random
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # of its compiled part
from ray.util.client import ray as client
from ray.util.placement_group import placement_group, remove_placement_group

from raylens.scheduler.process import is_command
from raylens.storage.errors import ClusterError, RaylensError, UsageError, one_line
from raylens.storage.temporary import temporary

#: Shared memory of a local Ray: prompts and receipts are small, results never pass through it.
OBJECT_STORE_BYTES = 200 * 10**6
#: Variables that are set while Ray is joined.
_ENVIRONMENT = (
    "RAY_USAGE_STATS_ENABLED",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_prestart_worker_first_driver",
    "PYTHONBREAKPOINT",  # to which Ray gives a debugger of its own
)
#: Seconds to wait for an address to answer.
REACH_SECONDS = 10.0
#: Seconds to wait for a first node that may hold actors: what an autoscaler takes to start a machine.
NODE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The addresses of its machines, its GPUs, and whether it was joined through Ray Client, maybe from another machine."""

    hosts: frozenset[str]
    gpus: float
    client: bool = False

    @property
    def here(self) -> bool:
        """Whether all of it is on this machine; but through Ray Client, a driver is on a machine of the cluster."""
        return len(self.hosts) <= 1 and not self.client


@contextmanager
def cluster(
    address: str, tell: Callable[[str], None] | None = None, stopping: Callable[[], bool] = lambda: False
) -> Iterator[Cluster]:
    """Join or start Ray, and have a node that may hold actors.

    A Ray that the calling script has initialised is used and left as it is. raylens never calls ``ray stop``, which
    would end every Ray on the machine.

    Args:
        tell: what is told that a node is waited for; without it none is.
        stopping: asked while waiting.

    Raises:
        ClusterError: Ray cannot be reached or started, or no node came.
        KeyboardInterrupt: stopped while waiting.
    """
    with contextlib.nullcontext() if ray.is_initialized() else _joined(address):
        if tell is not None:
            _await_node(tell, stopping)
        yield _cluster()


@contextmanager
def _joined(address: str) -> Iterator[None]:
    named = (os.environ.get("RAY_ADDRESS") or "local") if address == "auto" else address
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    try:
        with _random_kept():
            _join(address, None if named == "local" else named)
        yield
    finally:  # also where Ray did not start: its variables are set before it does
        with _random_kept():
            ray.shutdown()
        for name, value in before.items():  # the caller's own
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _forget_token()


@contextmanager
def _random_kept() -> Iterator[None]:
    """Ray draws from Python's one generator as it starts and ends; a program that has seeded it goes on as without Ray."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _join(address: str, target: str | None) -> None:
    try:
        if target is not None:
            _check_reachable(target)
        with _own_signals():
            _init(target)
    except RaylensError:
        raise
    except UnicodeEncodeError as error:  # Ray keeps the command line of whoever joins it
        remedy = "rename the file, or name it by a pattern in quotes, such as 'folder/*.jsonl'"
        raise UsageError(f"the command line holds what is not UTF-8, which Ray does not take; {remedy}") from error
    except Exception as error:  # of a node that is not up within half a minute, Ray raises a bare one
        remedy = f"is it up, does it run Ray {ray.__version__}, and if it needs a token, is RAY_AUTH_MODE=token set?"
        if "AF_UNIX" in str(error):  # of a local Ray, whose sockets are in the temporary folder
            remedy = "set TMPDIR to a shorter path, such as /tmp"
        raise ClusterError(f"--ray {address}: {one_line(error)}; {remedy}") from error


def _forget_token() -> None:
    """Have Ray read its variables anew: it keeps the token of the first cluster of a process, and what has none, such as an
    unguarded one that is joined later, would be refused by the process and take its actors for given up."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself as it starts, so that one at that time was lost, or ended a run as if it had failed. Its
    Python is not let; its compiled part, which does so last, is undone."""
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    take, handler = signal.signal, signal.getsignal(signal.SIGTERM)

    def refuse(number: int, asked: Any) -> Any:
        return handler if number == signal.SIGTERM else take(number, asked)

    signal.signal = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = take
        if handler is not None:  # of a program that embeds Python, and set it by other means
            take(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Ask the address itself first: Ray keeps trying for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()


def _init(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's notice about accelerator variables is a FutureWarning printed by every worker
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    # Ray puts the driver's working folder on its workers' path, where a redis.py of the user's would be imported. The folder of
    # a program that uses raylens is left alone, for its other threads may be looking for files.
    with contextlib.chdir("/") if is_command() else contextlib.nullcontext():
        if address is not None:
            ray.init(address=address, **quiet)
            return
        # Ray guards a local cluster by a token; without a file of ours it would write one to the user's home, which every
        # later cluster would then enforce
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token_file()))
        # Ray would begin with a Python for each CPU of the machine, 80 MB each, where a run needs one for each actor
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)


@cache
def _token_file() -> Path:
    """A token of this process's own, for its lifetime: Ray reads it once and keeps it."""
    folder = temporary(tempfile.TemporaryDirectory, prefix="raylens-ray-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


def _await_node(tell: Callable[[str], None], stopping: Callable[[], bool]) -> None:
    """Wait for a first node with CPUs: nodes take a while to join, and an autoscaler starts one only for the asking."""
    if any(node.get("CPU", 0.0) for node in resources()):
        return
    tell(f"waiting up to {NODE_SECONDS:.0f} s for a node of the cluster that can hold actors")
    until = time.monotonic() + NODE_SECONDS
    asked = placement_group([{"CPU": 1}])
    try:
        while not asked.wait(1):
            if stopping():
                raise KeyboardInterrupt
            if time.monotonic() > until:
                raise ClusterError(
                    "no node of the Ray cluster has a CPU for actors; start one, with ray start --address HEAD:PORT"
                )
    finally:
        remove_placement_group(asked)


def _nodes() -> list[dict[str, Any]]:
    """Those that are there now."""
    return [node for node in ray.nodes() if node["Alive"]]


def resources(host: str | None = None) -> list[dict[str, float]]:
    """Of each node that is there now; only of those of one machine, where given."""
    return [node["Resources"] for node in _nodes() if host in (None, node["NodeManagerAddress"])]


def _cluster() -> Cluster:
    hosts = frozenset(node["NodeManagerAddress"] for node in _nodes())
    return Cluster(hosts, gpus=sum(node.get("GPU", 0.0) for node in resources()), client=client.is_connected())


def check_reached(redis: str, ours: Cluster) -> None:
    """Refuse an embedded server where actors may be on other machines.

    Raises:
        ClusterError: they may.
    """
    if redis == "embedded" and not ours.here:
        raise ClusterError(
            "the Ray cluster has, or may have, other machines, which cannot reach the embedded server; give --redis URL"
        )
