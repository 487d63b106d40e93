"""A peer's process, kept alive between rounds so that neighbours in time are compared (peers/turns.py is the other end)."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class PeerError(Exception):
    """A peer does not run here; the message says why in a line."""


class PeerProcess:
    """One peer at work, in the environment that has it.

    Args:
        name: shown in tables.
        module: of tests.benchmarks.peers, with its options.
        python: interpreter of its environment.
        folder: of the model; any word for peers without one.

    Raises:
        PeerError: it does not start.
    """

    def __init__(self, name: str, module: str, python: str, folder: str) -> None:
        self.name = name
        program, *options = module.split()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        command = [python, "-m", f"tests.benchmarks.peers.{program}", folder, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._log, text=True, cwd=ROOT, env=environment
            )
        except OSError as error:
            raise PeerError(f"{name}: not measured: {error}") from error
        self.about: dict[str, Any] = self._answer()

    def ask(self, texts: list[str], taps: list[str]) -> dict[str, Any]:
        """One round of lensing.

        Raises:
            PeerError: the peer failed.
        """
        return self.do({"texts": texts, "taps": taps})

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job, as the peer's module describes it; raises as ``ask``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> PeerError:
        code = self._process.wait()
        self._log.seek(0)
        said = [line.strip() for line in self._log if line.strip()] or [f"ended with code {code}"]
        return PeerError(f"{self.name}: not measured: {said[-1][:300]}")

    def close(self) -> None:
        """End it: its stdin ends."""
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
