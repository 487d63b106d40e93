"""The figures of a run as Prometheus reads them from Ray."""

import re
import sys
import urllib.request
from pathlib import Path

from tests.rays import own_env
from tests.servers import free_port
from tests.started import started
from tests.waiting import wait_until

#: A driver that tells of two commits, and is there until it is ended.
DRIVER = """
import sys, threading
import ray
from raylens.scheduler.run_metrics import RunMetrics
from raylens.storage.ledger import Commit, Entry

ray.init(sys.argv[1], log_to_driver=False)
metrics = RunMetrics("r", 7)
metrics.set(deaths=2, ready=1)
metrics.committed(Commit(1, 0, "w", None, 0, 0, []))
for n, kinds in ((1, (None, "model", None, None)), (2, ("crash",))):
    metrics.committed(Commit(1, n, "w", "s", 9, 0, [Entry(n, "p", 0, 3, 0 if kind else 5, kind) for kind in kinds]))
metrics.set(deaths=3)
threading.Event().wait()
"""

SERVED = {"prompts": 7, "deaths": 3, "ready": 1, "failures": 2, "stored_prompts": 5, "stored_tokens": 15}


def served(port: int) -> dict[str, float]:
    """Name -> value of run r."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    lines = re.findall(r"^ray_raylens_(\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    return {name.removesuffix("_total"): float(value) for name, labels, value in lines if 'run="r"' in labels}


def test_what_is_served(tmp_path: Path) -> None:
    """Prompts and tokens of all commits together, failures since the driver began, and the last of each gauge."""
    port, agent, metrics = (free_port() for _ in range(3))
    env = own_env(tmp_path) | {"RAY_metrics_report_interval_ms": "100"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", str(port), "--num-cpus", "1", "--block"]
    command += ["--include-dashboard", "false", "--metrics-export-port", str(metrics), "--disable-usage-stats"]
    command += ["--dashboard-agent-listen-port", str(agent)]
    log = tmp_path / "head.log"
    with started(log, command, env):
        wait_until(lambda: "Ray runtime started" in log.read_text(), "Ray is up")
        with started(tmp_path / "driver.log", [sys.executable, "-c", DRIVER, f"127.0.0.1:{port}"], env) as driver:
            found: dict[str, float] = {}  # kept, for of the next answer Ray may leave gauges out

            def all_is_served() -> bool:
                found.clear()
                found.update(served(metrics))
                return found == SERVED or driver.poll() is not None

            wait_until(all_is_served, "all is served")
            assert found == SERVED, (tmp_path / "driver.log").read_text()
