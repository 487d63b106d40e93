"""Nodes of a Ray cluster as their users start them."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import platformdirs

from tests.servers import free_port
from tests.started import TOOLS, started
from tests.waiting import wait_until

#: A node that is told to end would let its actors work on for half a minute.
AT_ONCE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}
#: What Ray says when it has waited half a minute, which nothing makes longer, for an answer of its own head on a busy machine.
GAVE_UP = "The current node timed out during startup"
ROOT = Path(__file__).parents[1]


def own_env(folder: Path) -> dict[str, str]:
    """Without the Ray and the home of whoever runs the tests."""
    env = {name: value for name, value in TOOLS.items() if not name.startswith("RAY_")}
    return env | AT_ONCE | {"HOME": str(folder), "XDG_CACHE_HOME": str(platformdirs.user_cache_path()), "PYTHONPATH": str(ROOT)}


@contextmanager
def node(log: Path, env: dict[str, str], *arguments: str, python: str = sys.executable, cpus: int = 1) -> Iterator[None]:
    """``ray start ARGUMENTS``, once it is up; a second time where Ray gave up waiting."""
    ports = [word for name in ("dashboard-agent-listen", "metrics-export") for word in (f"--{name}-port", str(free_port()))]
    command = [python, "-m", "ray.scripts.scripts", "start", *arguments, *ports, "--num-cpus", str(cpus)]
    for again in (True, False):
        with started(log, [*command, "--disable-usage-stats", "--block"], env) as process:
            wait_until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, f"{log.stem} is up")
            if process.poll() is None:
                yield
                return
        said = log.read_text()
        assert GAVE_UP in said, said
        assert again, said


def head(folder: Path, port: int, env: dict[str, str], *more: str, cpus: int = 1) -> AbstractContextManager[None]:
    return node(folder / "head.log", env, "--head", "--port", str(port), "--include-dashboard", "false", *more, cpus=cpus)
