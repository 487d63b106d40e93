"""The Ray cluster of a run: joined, or started on this machine, and how many actors it takes."""

import atexit
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ray

from raylens.storage.errors import ClusterError

#: Shared memory of a local Ray: prompts and receipts are small, results never pass through it.
OBJECT_STORE_BYTES = 200 * 10**6
#: Seconds to wait for an address to answer.
REACH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Share:
    """What each of ``actors`` actors gets."""

    actors: int
    cpus: float
    gpus: float


@contextmanager
def cluster(address: str) -> Iterator[bool]:
    """Join or start Ray; yields whether all of it is on this machine.

    A Ray that the calling script has initialised is used and left as it is. raylens never calls ``ray stop``, which
    would end every Ray on the machine.

    Raises:
        ClusterError: Ray cannot be reached or started.
    """
    if ray.is_initialized():
        yield _single_host()
        return
    target = os.environ.get("RAY_ADDRESS") if address == "auto" else None if address == "local" else address
    try:
        if target is not None:
            _check_reachable(target)
        _init(target)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise ClusterError(f"--ray {address}: {text}; is the cluster up and of Ray {ray.__version__}?") from error
    try:
        yield _single_host()
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ask the address itself first: Ray keeps trying for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


def _init(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's notice about accelerator variables is a FutureWarning printed by every worker
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    # Ray guards a local cluster by a token; without a file of ours it would write one to the user's home, which every
    # later cluster would then enforce
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token_file()))
    ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)


@cache
def _token_file() -> Path:
    """A token of this process's own, for its lifetime: Ray reads it once and keeps it."""
    folder = tempfile.TemporaryDirectory(prefix="raylens-ray-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


def _single_host() -> bool:
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) <= 1


def share(actors: int | None, gpus_per_actor: float) -> Share:
    """How the cluster is divided: by GPUs where it has any, else one actor a node.

    Raises:
        ClusterError: no node has what one actor needs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    per_actor = gpus_per_actor if gpus else 0.0
    if per_actor > max((node.get("GPU", 0.0) for node in nodes), default=0.0):
        raise ClusterError(f"--gpus-per-actor {gpus_per_actor:g}: no node of the cluster has that many GPUs")
    if cpus <= 0:
        raise ClusterError("the Ray cluster offers no CPU for actors")
    if actors is None:
        actors = max(1, int(gpus / per_actor)) if per_actor else len([node for node in nodes if node.get("CPU", 0.0) > 0])
    smallest = min(node["CPU"] for node in nodes if node.get("CPU", 0.0) > 0)
    return Share(actors, min(cpus / actors, smallest) if cpus < actors or not gpus else 1.0, per_actor)
