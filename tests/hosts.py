"""Several hosts on one machine: network namespaces on a bridge, each with its own address and its own /tmp/ray."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until

#: Of the hosts' own network, from .1; the bridge is the last.
NETWORK = "10.203.77"
IP = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "ip"


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace.

    Attributes:
        space: its name.
        address: its IPv4 address.
        folder: stands for its /tmp/ray.
        plug: the bridge's end of its cable.
    """

    space: str
    address: str
    folder: Path
    plug: str

    def on(self, *command: str) -> list[str]:
        """The command on this host."""
        # ip netns exec has a mount namespace of its own, so nobody else sees this
        mounted = ["sh", "-c", f'mount --bind "{self.folder}" /tmp/ray && exec "$@"', "sh", *command]
        return [IP, "netns", "exec", self.space, *mounted]

    def cut(self) -> None:
        """Pull the cable: no packet goes in or out any more, and nobody is told."""
        _ip("link", "set", self.plug, "down")

    def kill(self) -> None:
        """End all that runs on it at once."""
        wait_until(self._killed, f"nothing runs on {self.address}")

    def _killed(self) -> bool:
        pids = [int(pid) for pid in _ip("netns", "pids", self.space).split()]
        for pid in pids:
            with suppress(psutil.Error):  # it has just ended
                psutil.Process(pid).kill()
        return not pids


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """So many hosts, reachable from each other and from here; whatever runs on them is killed at the end."""
    word = secrets.token_hex(3)
    bridge = f"rl{word}"
    Path("/tmp/ray").mkdir(exist_ok=True)
    with ExitStack() as stack:
        try:
            _ip("link", "add", bridge, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield [stack.enter_context(_host(number, word, bridge, folder)) for number in range(1, count + 1)]


@contextmanager
def _host(number: int, word: str, bridge: str, folder: Path) -> Iterator[Host]:
    host = Host(f"raylens-{word}-{number}", f"{NETWORK}.{number}", folder / f"ray-{number}", f"rl{word}{number}")
    host.folder.mkdir()
    _ip("netns", "add", host.space)
    try:
        _ip("link", "add", host.plug, "type", "veth", "peer", "name", "eth0", "netns", host.space)
        _ip("link", "set", host.plug, "master", bridge, "up")
        _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.space, "link", "set", device, "up")
        _ip("-n", host.space, "route", "add", "default", "via", f"{NETWORK}.254")  # Ray asks which address leads out
        yield host
    finally:
        host.kill()
        _ip("link", "del", host.plug)  # a socket that waits for an answer would keep it, with the whole namespace
        _ip("netns", "del", host.space)


def _ip(*words: str) -> str:
    return subprocess.run([IP, *words], check=True, capture_output=True, text=True).stdout
