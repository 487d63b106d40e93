"""A run over several hosts, each with its own address: Ray nodes, a server with a password, a writer beside the store."""

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import platformdirs

import raylens
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.pulse import read_pulse
from tests.hosts import Host, hosts
from tests.rays import AT_ONCE
from tests.servers import PASSWORD, binary
from tests.started import TOOLS, started
from tests.tiny import sentences
from tests.waiting import HUNG, wait_until

PROMPTS = 700
RAY, REDIS = 6399, 6400
#: Ray takes a node that does not answer for dead after ten seconds in place of half a minute.
HEALTH = {"initial_delay_ms": 0, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 10}


def environment(home: Path) -> dict[str, str]:
    """Without another Ray's settings, and with what is stored at home kept out of the user's."""
    plain = {name: value for name, value in TOOLS.items() if not name.startswith("RAY_")}
    plain |= AT_ONCE | {"HOME": str(home), "XDG_CACHE_HOME": str(platformdirs.user_cache_path()), "RAY_USAGE_STATS_ENABLED": "0"}
    return plain | {f"RAY_health_check_{name}": str(value) for name, value in HEALTH.items()}


def ray_node(host: Host, *arguments: str) -> list[str]:
    """``ray start`` on a host."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--node-ip-address", host.address, "--block"]
    return host.on(*start, "--disable-usage-stats", *arguments)


def test_a_host_that_is_cut_off_costs_nothing(tmp_path: Path, tiny: Path) -> None:
    """Four hosts: the driver, two with an actor, and the storage machine. One of the actors' hosts loses its cable in mid-run."""
    corpus, store, env = tmp_path / "c.jsonl", tmp_path / "st", environment(tmp_path)
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(PROMPTS, 40)))
    store.mkdir()
    folder = RunFolder(store / "runs" / "r")
    with hosts(4, tmp_path) as (driver, node, lost, storage), ExitStack() as stack:
        url = f"redis://:{PASSWORD}@{storage.address}:{REDIS}"
        server = [binary("valkey9"), "--bind", storage.address, "--port", str(REDIS), "--requirepass", PASSWORD, "--save", ""]
        stack.enter_context(started(tmp_path / "server.log", storage.on(*server), env))
        nodes = {
            "head": ray_node(driver, "--head", "--port", str(RAY), "--num-cpus", "0", "--include-dashboard", "false"),
            "node": ray_node(node, "--address", f"{driver.address}:{RAY}", "--num-cpus", "1"),
            "lost": ray_node(lost, "--address", f"{driver.address}:{RAY}", "--num-cpus", "1"),
        }
        for name, command in nodes.items():
            log = tmp_path / f"{name}.log"
            stack.enter_context(started(log, command, env))
            wait_until(lambda log=log: "Ray runtime started" in log.read_text(), f"{name} is up")  # type: ignore[misc]
        python = [sys.executable, "-m", "raylens"]
        secret = {**env, "RAYLENS_WRITER_REDIS": url, "RAYLENS_RUN_REDIS": url}
        stack.enter_context(started(tmp_path / "writer.log", storage.on(*python, "writer", str(store), "--run", "r"), secret))
        options = ["-m", str(tiny), "-o", str(store), "--name", "r", "--positions", "all", "--batch-tokens", "64", "--json"]
        where = ["--ray", f"{driver.address}:{RAY}", "--actors", "2", "--writer", "external"]
        command = driver.on(*python, "run", str(corpus), *options, *where)
        run = stack.enter_context(started(tmp_path / "run.log", command, secret))

        def both_at_work() -> bool:
            assert run.poll() is None, (tmp_path / "run.log").read_text()
            pulse = read_pulse(folder)
            ledger = Ledger(folder)
            ledger.refresh()
            return pulse is not None and pulse.ready == 2 and ledger.count > 0

        wait_until(both_at_work, "both actors are ready and something is stored")
        lost.cut()
        assert run.wait(timeout=HUNG) == 0, (tmp_path / "run.log").read_text()
        lost.kill()  # it would try to say goodbye
    said = (tmp_path / "run.log").read_text()
    assert re.search(r"resubmitting \d+ prompts?", said), said
    entered = [entry.index for commit in Ledger(folder).refresh() for entry in commit.entries]
    assert sorted(entered) == list(range(PROMPTS))
    assert raylens.open(store)["r"].counts()["records"] == PROMPTS
    assert PASSWORD not in said
