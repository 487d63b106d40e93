"""The embedded server: who may do what in it, how it ends, and which other servers are refused."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from raylens.storage import server as server_module
from raylens.storage.errors import BrokerError
from raylens.storage.frame import MAX_FRAME_BYTES
from raylens.storage.server import EmbeddedServer
from raylens.storage.server_memory import Memory
from raylens.storage.stream import MAX_VALUE_BYTES, Stream, check_server, connect, stream_key
from raylens.storage.urls import redact
from tests.servers import answers
from tests.waiting import wait_until


def socket_of(server: EmbeddedServer) -> Path:
    return Path(server.url.rpartition("@")[2])


def anonymous(server: EmbeddedServer) -> str:
    """The server's URL without user and password."""
    return f"unix://{socket_of(server)}"


def run_command(url: str, *command: Any) -> Any:
    with connect(url, retries=0) as client:
        return client.execute_command(*command)


def server_pid(server: EmbeddedServer) -> int:
    return int(run_command(server.url, "INFO", "server")["process_id"])


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be buried."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


# ---- rights

KEY = "raylens:{x}:frames"


@pytest.mark.parametrize(
    "command",
    [
        ["EXISTS", KEY],
        ["XGROUP", "CREATE", KEY, "g", "$", "MKSTREAM"],
        ["XADD", KEY, "*", "f", "v"],
        ["XREAD", "STREAMS", KEY, "0"],
        ["XLEN", KEY],
        ["DEL", KEY],
        ["INFO"],
        ["SET", "a", "b"],
        ["GET", "a"],
        ["KEYS", "*"],
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["CLIENT", "LIST"],
        ["ACL", "LIST"],
        ["EVAL", "return 1", "0"],
        ["SHUTDOWN"],
    ],
    ids=" ".join,
)
def test_without_a_password_nothing_is_allowed(server: EmbeddedServer, command: list[str]) -> None:
    """The default user may ping and nothing else."""
    assert run_command(anonymous(server), "PING")
    with pytest.raises(redis.exceptions.NoPermissionError):
        run_command(anonymous(server), *command)


@pytest.mark.parametrize(
    "command",
    [
        ["EXISTS", "other"],
        ["XGROUP", "CREATE", "other", "g", "$", "MKSTREAM"],
        ["XGROUP", "DESTROY", KEY, "g"],
        ["XADD", "other", "*", "f", "v"],
        ["XADD", "xraylens:1", "*", "f", "v"],
        ["XREAD", "STREAMS", "other", "0"],
        ["DEL", "other"],
        ["XDEL", "other", "1-0"],
        ["SET", KEY, "v"],
        ["SET", "other", "v"],
        ["GET", KEY],
        ["RENAME", KEY, "other"],
        ["FLUSHALL"],
        ["FLUSHDB"],
        ["CONFIG", "GET", "*"],
        ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
        ["KEYS", "*"],
        ["SCAN", "0"],
        ["EVAL", "return redis.call('XLEN', KEYS[1])", "1", KEY],
        ["FUNCTION", "LIST"],
        ["ACL", "LIST"],
        ["ACL", "SETUSER", "raylens", "+@all"],
        ["CLIENT", "LIST"],
        ["CLIENT", "KILL", "TYPE", "normal"],
        ["CLIENT", "PAUSE", "100000"],
        ["MONITOR"],
        ["SAVE"],
        ["SHUTDOWN", "NOSAVE"],
        ["REPLICAOF", "127.0.0.1", "1"],
        ["MODULE", "LIST"],
        ["PUBLISH", "raylens:x", "v"],
    ],
    ids=" ".join,
)
def test_the_user_of_a_run_may_only_use_its_streams(server: EmbeddedServer, command: list[str]) -> None:
    """Other keys and commands that a run does not need are refused to its user."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        run_command(server.url, *command)


def test_the_user_of_a_run_may_do_all_it_needs(server: EmbeddedServer, open_stream: Callable[..., Stream]) -> None:
    """Every method of a stream works with the rights of a run's user."""
    stream = open_stream(server.url, "0123")
    stream.create()
    stream.ping()
    check_server(server.url)
    ids = [stream.publish(b"frame %d" % number) for number in range(3)]
    assert stream.read("0-0", 1) == [(ids[number], b"frame %d" % number) for number in range(3)]
    assert stream.read(ids[1], 1) == [(ids[2], b"frame 2")]
    assert stream.read(ids[2], 1) == []
    stream.delete(ids[:2])
    assert stream.missing(ids) == set(ids[:2])
    assert stream.length() == 1
    assert run_command(server.url, "XLEN", stream_key("0123")) == 1
    stream.drop()
    assert stream.missing(ids) == set(ids)


def test_a_wrong_password_is_refused(server: EmbeddedServer) -> None:
    """The error tells what to look at, and neither password."""
    secret = server.url.partition("raylens:")[2].partition("@")[0]
    with pytest.raises(BrokerError, match="is the server running and the password right") as refused:
        check_server(f"unix://raylens:guessed-wrong@{socket_of(server)}")
    assert "guessed-wrong" not in str(refused.value)
    assert secret not in str(refused.value)


def test_a_temporary_folder_with_signs_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is part of the socket's path, and of nothing else."""
    with tempfile.TemporaryDirectory(prefix="r#?%20") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with EmbeddedServer() as server, connect(server.url) as client:
            assert client.ping()


def test_the_folder_is_private(server: EmbeddedServer) -> None:
    """Only the owner can reach the socket and read the passwords."""
    folder = socket_of(server).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "users.acl").stat().st_mode & 0o777 == 0o600
    assert socket_of(server).stat().st_mode & 0o777 == 0o700


def test_many_entries_are_deleted_and_asked_for(server: EmbeddedServer, open_stream: Callable[..., Stream]) -> None:
    """More entries than fit one command are deleted, and asked for, in several."""
    stream = open_stream(server.url, "0123")
    stream.create()
    ids = [stream.publish(b"f") for _ in range(1100)]
    assert stream.missing([*ids, "1-1"]) == {"1-1"}
    stream.delete(ids[50:])
    assert stream.missing(ids) == set(ids[50:])
    assert stream.missing([]) == set()
    stream.drop()


# ---- how it ends


def test_the_server_ends_when_it_is_closed() -> None:
    """Closing ends the process and removes the folder, and a second time does no harm."""
    server = EmbeddedServer()
    pid, folder = server_pid(server), socket_of(server).parent
    assert answers(server.url)
    server.close()
    assert not answers(server.url)
    assert ended(pid)
    assert not folder.exists()
    server.close()


OWNER = """
import sys
from raylens.storage.server import EmbeddedServer
server = EmbeddedServer()
print(server.url, flush=True)
sys.stdin.read()
"""


@contextmanager
def owner_process() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process that owns a server and waits; and the server's URL."""
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_server_ends_with_its_owner(number: signal.Signals) -> None:
    """However the owner ends, its server ends too, and its folder with the passwords is removed."""
    with owner_process() as (process, url):
        pid = int(run_command(url, "INFO", "server")["process_id"])
        folder = Path(url.rpartition("@")[2]).parent
        assert folder.exists()
        process.send_signal(number)
        process.wait()
        wait_until(lambda: ended(pid), f"the server of an owner ended by {number.name} is gone")
        wait_until(lambda: not folder.exists(), "its folder is gone")


def test_an_interrupt_in_the_terminal_is_not_for_the_server(own_server: EmbeddedServer) -> None:
    """The server is in a session of its own, so that a Ctrl-C leaves it to the driver."""
    assert os.getsid(server_pid(own_server)) != os.getsid(0)


def test_a_killed_server_is_started_anew(own_server: EmbeddedServer, open_stream: Callable[..., Stream]) -> None:
    """After a SIGKILL the restarted server is at the same URL, and empty; an old connection finds it."""
    stream = open_stream(own_server.url, "0123")
    stream.create()
    stream.publish(b"frame")
    first = server_pid(own_server)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not answers(own_server.url), "the killed server is gone")
    own_server.restart()
    assert server_pid(own_server) != first
    assert stream.length() == 0


def test_a_frozen_server_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not hear SIGTERM is killed."""
    monkeypatch.setattr(server_module, "END_SECONDS", 0.5)
    server = EmbeddedServer()
    pid = server_pid(server)
    os.kill(pid, signal.SIGSTOP)
    server.close()
    wait_until(lambda: ended(pid), "the frozen server is gone")


def test_a_server_whose_guard_was_killed_is_closed() -> None:
    """Without its guard the server would outlive its owner; closing ends it all the same."""
    server = EmbeddedServer()
    pid = server_pid(server)
    os.kill(os.getsid(pid), signal.SIGKILL)  # the guard leads the session
    wait_until(lambda: ended(os.getsid(pid)), "the guard is gone")
    assert answers(server.url)
    server.close()
    wait_until(lambda: ended(pid), "the server is gone")


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last line of its log is in the error, and nothing of it stays behind."""
    monkeypatch.setattr(server_module, "MAX_MEMORY", "a lot")
    monkeypatch.setattr(server_module, "START_RETRIES", 5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BrokerError, match=r"embedded Valkey did not start: .*give --redis URL instead"):
        EmbeddedServer()
    assert list(tmp_path.iterdir()) == []


# ---- other servers


@contextmanager
def raw_server(**options: str) -> Iterator[str]:
    """A Valkey with other options; its URL."""
    folder = Path(tempfile.mkdtemp(prefix="raylens-test-"))  # tmp_path may be too long for a socket
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = [server_module._valkey_binary(), "--port", "0", "--unixsocket", folder / "socket", "--save", "", "--dir", folder]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL)
    try:
        connect(f"unix://{folder}/socket", retries=40).ping()
        yield f"unix://{folder}/socket"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("used", "limit", "full"),
    [
        (1 << 40, 0, False),
        (966_367_641, 1 << 30, False),
        (966_367_642, 1 << 30, True),
        ((5 << 20) - 1, 8 << 20, False),
        (5 << 20, 8 << 20, True),
    ],
)
def test_when_a_server_is_full(used: int, limit: int, full: bool) -> None:
    """From nine tenths of its limit, or where a frame might not fit any more; never without a limit."""
    assert Memory(used, limit).full == full


def test_a_value_larger_than_any_frame_is_not_taken(server: EmbeddedServer, open_stream: Callable[..., Stream]) -> None:
    """What the server has taken its readers must take whole; the largest frame fits."""
    stream = open_stream(server.url, "large")
    stream.create()
    frame = bytes(MAX_FRAME_BYTES)
    stream.publish(frame)
    for size in (MAX_VALUE_BYTES + 1, 100 << 20):
        # the client reads the server's words, or finds the connection closed while it sends
        with pytest.raises((redis.ConnectionError, redis.ResponseError)):
            run_command(server.url, "XADD", stream_key("large"), "*", "f", bytes(size))
    assert [data for _, data in stream.read("0-0", 0)] == [frame]
    stream.drop()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"])
def test_a_server_that_may_evict_is_refused(policy: str) -> None:
    """A server with a limit and any policy but noeviction could drop results."""
    reason = rf"unix://.*: maxmemory-policy is {policy}, .*set it to noeviction"
    with raw_server(maxmemory="10mb", maxmemory_policy=policy) as url, pytest.raises(BrokerError, match=reason):
        check_server(url)


@pytest.mark.parametrize(
    "options",
    [{}, {"maxmemory": "10mb", "maxmemory_policy": "noeviction"}, {"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}],
    ids=str,
)
def test_a_server_that_never_evicts_is_taken(options: dict[str, str]) -> None:
    """A server without a limit, or one that refuses when full, keeps results."""
    with raw_server(**options) as url:
        check_server(url)


def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error names the server and what to look at."""
    with pytest.raises(BrokerError, match=r"--redis unix://\*\*\*@.*/nothing: .*is the server running"):
        check_server(f"unix://user:secret@{tmp_path}/nothing")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:pass@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:pass@host", "redis://***@host"),
        ("redis://user@host", "redis://***@host"),
        ("rediss://user:pass@host/0?ssl_cert_reqs=none&password=pass", "rediss://***@host/0"),
        ("redis://host?password=pass", "redis://host"),
        ("redis://host?password=pa@ss", "redis://***"),
        ("unix://user:pass@/run/redis.sock?db=1", "unix://***@/run/redis.sock"),
        ("redis://:pa/ss@host:6379", "redis://***@host:6379"),
        ("redis://:pa@ss@host", "redis://***@host"),
        ("redis://:pa#ss@host", "redis://***@host"),
        ("redis://:pa?ss@host", "redis://***"),
        ("redis://u:pass@[::1]:6379", "redis://***@[::1]:6379"),
        ("user:pass@host", "***"),
        ("localhost:6379", "localhost:6379"),
        ("", ""),
    ],
)
def test_secrets_of_a_url_are_not_shown(url: str, shown: str) -> None:
    """User, password and options are left out, also where the URL is badly written."""
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "http://u:sEcReT@host",
        "redis://u:sEcReT@host:port",
        "redis://:x/sEcReT@host:6379",
        "redis://:sEcReT/x@host:6379",
        "redis://:sEcReT#x@host",
        "redis://:x?sEcReT@host",
        "redis://:sEcReT@[::1",
        "redis://u:sEcReT@host?socket_timeout=sEcReT",
        "redis://u:sEcReT@host?unknown_option=sEcReT",
        "unix://u:sEcReT@/tmp/socket?db=sEcReT",
        "u:sEcReT@localhost:6379",
        "localhost:6379",
        "",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str) -> None:
    """A URL that redis-py cannot read is one clear error, and no piece of a password is in it."""
    for use in (check_server, connect, lambda bad: Stream(bad, "0123")):
        with pytest.raises(BrokerError, match="write redis://, rediss:// or unix://") as refused:
            use(url)
        assert "sEcReT" not in str(refused.value)


def test_errors_of_a_stream_show_no_secret(own_server: EmbeddedServer) -> None:
    """What a stream raises when its server is away names the server without its password."""
    stream = Stream(own_server.url, "0123", retries=0)
    secret = own_server.url.partition("raylens:")[2].partition("@")[0]
    own_server.close()
    calls: list[Callable[[], Any]] = [
        lambda: stream.publish(b"frame"),
        lambda: stream.read("0-0", 1),
        lambda: stream.missing(["1-0"]),
        lambda: stream.delete(["1-0"]),
        stream.length,
        stream.drop,
        stream.ping,
    ]
    for call in calls:
        with pytest.raises(BrokerError, match=r"unix://\*\*\*@") as refused:
            call()
        assert secret not in str(refused.value)
    stream.close()
