"""A run with everything around it that can break: a Ray cluster of several nodes, a server, a network, a disk."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from tests.proxy import Proxy
from tests.running import command_line
from tests.servers import RealServer

RUN = "soak"
#: Options that a resumed run must repeat. Records of the long prompts take two frames each.
LENS = ["--positions", "all", "--logprobs", "float32", "-k", "50", "--batch-tokens", "64", "--name", RUN, "--json"]
NODES = 2
#: Bytes a second of the network, so that a run is still at work when the next fault comes.
RATE = 150e3
#: Seconds without a commit after which a run hangs.
HANGS = 300
#: Exit codes with which a driver may give up: server away, and writer fenced or unable to write.
MAY_END = {5, 6}


class Complete(Exception):
    """The run ended before a fault found what it wanted to break."""


class Stage:
    """Starts all of it; ``raylens run`` is started by ``keep_running``, again and again until it is done.

    Args:
        folder: for logs, and for the store's disk.
        corpus, model: of the run.
        server: kind of the server.
    """

    def __init__(self, folder: Path, corpus: Path, model: Path, server: str) -> None:
        self._close = ExitStack()
        self.server = self._close.enter_context(
            RealServer(server, "--maxmemory", "16mb", "--maxmemory-policy", "noeviction", persistent=True)
        )
        self.proxy = self._close.enter_context(Proxy(self.server.socket, RATE))
        self.disk = Disk(folder / "disk")
        self._close.callback(self.disk.close)
        self.nodes = _nodes(folder)
        self._close.callback(self.nodes.shutdown)
        self.run_folder = RunFolder(folder / "disk" / "store" / "runs" / RUN)
        self._ledger = Ledger(self.run_folder)
        self._grew = time.monotonic()
        self._events, self._log = folder / "events.jsonl", folder / "stderr"
        self._command = [
            sys.executable,
            "-m",
            "raylens",
            "run",
            str(corpus),
            "-m",
            str(model),
            "-o",
            str(folder / "disk" / "store"),
        ]
        self._command += [
            *LENS,
            "--ray",
            self.nodes.address,
            "--redis",
            f"redis://127.0.0.1:{self.proxy.port}",
            "--actors",
            str(NODES),
        ]
        self.driver: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.complete = False
        self._close.callback(self._end_driver)

    def stored(self) -> int:
        """Prompts in the ledger."""
        if self._ledger.refresh():
            self._grew = time.monotonic()
        return self._ledger.count

    def keep_running(self) -> None:
        """Start the driver, or start it again if it was killed or gave up."""
        code = None if self.driver is None else self.driver.poll()
        if self.driver is not None and code is None:
            return
        self.complete = code in {0, 3}
        assert code is None or self.complete or code == -signal.SIGKILL or code in MAY_END, (
            f"exit code {code}: {self.last_words()}"
        )
        if not self.complete:
            self._start_driver()

    def _start_driver(self) -> None:
        with self._events.open("ab") as events, self._log.open("ab") as log:
            env = {**os.environ, "PYTHONFAULTHANDLER": "1"}
            self.driver = subprocess.Popen(self._command, stdout=events, stderr=log, env=env, start_new_session=True)
        self.starts += 1
        self._grew = time.monotonic()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Keep the run going until the condition holds.

        Raises:
            Complete: the run ended before.
            AssertionError: it hangs, or the driver ended as it must not; stacks are in the driver's and writer's logs.
        """
        pause = threading.Event()
        while not condition():
            self.keep_running()
            if self.complete:
                raise Complete
            self.stored()
            if time.monotonic() - self._grew > HANGS:
                self._dump()
                raise AssertionError(f"no commit in {HANGS} s while waiting until {what}: {self.last_words()}")
            pause.wait(0.05)

    def find(self, kind: str) -> psutil.Process:
        """A living actor or writer, waited for."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = self.actors() if kind == "actor" else self.writers()
            return bool(found)

        self.until(look, f"there is a living {kind}")
        return found[0]

    def actors(self) -> list[psutil.Process]:
        """The living actors of this cluster: other Rays on the machine are not ours."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.nodes.worker_nodes]
        return [process for pid in raylets for process in _family(pid) if "LensActor" in command_line(process)]

    def writers(self) -> list[psutil.Process]:
        """The living writer of the driver."""
        pid = self.driver.pid if self.driver is not None else 0
        return [process for process in _family(pid) if "raylens.storage.writer" in command_line(process)]

    def resubmitted(self) -> int:
        """Prompts that the drivers said they submitted again."""
        lines = self._events.read_text().splitlines()
        texts = [event["text"] for line in lines if (event := _event(line)).get("event") == "waiting"]
        return sum(int(number.replace(",", "")) for text in texts for number in re.findall(r"resubmitting ([\d,]+)", text))

    def last_words(self) -> str:
        """The ends of the logs."""
        logs = [self._log, self.run_folder.writer_log]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())

    def _dump(self) -> None:
        for process in [*self.writers(), *self.actors(), *_family(self.driver.pid if self.driver else 0)]:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)
        if self.driver is not None:
            self.driver.send_signal(signal.SIGABRT)
            self.driver.wait()

    def _end_driver(self) -> None:
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._close.close()


class Disk:
    """A small file system that can be filled: a tmpfs, or where mounting is not allowed a folder whose writer is limited."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._filler = folder / "filler"
        mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "raylens-soak", str(folder)]
        self.mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def fill(self, writer: psutil.Process) -> None:
        """From now on the writer cannot write more."""
        if not self.mounted:
            writer.rlimit(psutil.RLIMIT_FSIZE, (0, 0))
            return
        with suppress(OSError), self._filler.open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 20)):
                pass

    def free(self) -> None:
        """Make room again; a limited writer ends by itself."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self._folder)], check=True)


def _nodes(folder: Path) -> Any:
    """A head without CPUs, which stays, and nodes of one CPU each, all guarded by a token of their own."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(NODES):
        nodes.add_node(num_cpus=1)
    return nodes


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.Error:
        return []


def _event(line: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:  # cut short by a kill
        return {}
    return event
