"""Every server that raylens promises to work with, by every way to reach it: the stream, the writer, and a whole run."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

import raylens
from raylens.storage import stream as stream_module
from raylens.storage.errors import BrokerError, ServerRefuses
from raylens.storage.frame import MAX_FRAME_BYTES
from raylens.storage.layout import RunFolder
from raylens.storage.manifest import read_manifest
from raylens.storage.server import RIGHTS
from raylens.storage.server_status import server_status
from raylens.storage.stream import MAX_VALUE_BYTES, Stream, check_server, connect, stream_key
from raylens.storage.writer import Writer
from raylens.workers.publish import publish
from tests.builders import make_failure, make_frames, make_large_record, make_record, make_run, same
from tests.command import raylens_command
from tests.servers import ACCESSES, INFRA, KINDS, PASSWORD, RealServer, acl_server, reach, secure_with, tls_server
from tests.tiny import save_word_llama, sentences
from tests.waiting import HUNG

pytestmark = pytest.mark.usefixtures("shared_ray")

WAYS = [(kind, access) for kind in KINDS for access in ACCESSES]


@pytest.fixture(params=WAYS, ids="-".join, scope="module")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with reach(*request.param, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_llama(tmp_path_factory.mktemp("model"))


def keys(url: str) -> int:
    """Keys that the server holds, asked by a user who may."""
    with connect(url) as client:
        return sum(space["keys"] for space in client.info("keyspace").values())


def test_a_stream_does_on_it_all_that_a_run_needs(url: str, open_stream: Callable[..., Stream]) -> None:
    """Every method of a stream, and the check at the start, which leaves nothing behind."""
    check_server(url)
    assert keys(url) == 0
    stream = open_stream(url, "0123")
    stream.create()
    ids = [stream.publish(b"frame %d" % number) for number in range(3)]
    assert stream.read(ids[0], 1) == [(ids[1], b"frame 1"), (ids[2], b"frame 2")]
    assert stream.read(ids[2], 1) == []
    stream.delete(ids[:2])
    assert stream.missing(ids) == set(ids[:2])
    assert stream.length() == 1
    stream.drop()
    assert keys(url) == 0


def test_a_writer_stores_what_comes_through_it(url: str, tmp_path: Path, open_stream: Callable[..., Stream]) -> None:
    """Records of one frame and of three, failures, doubles and poison, as on the embedded server."""
    folder, manifest = make_run(tmp_path, prompts=4)
    stream = open_stream(url, manifest.uid)
    stream.create()
    outcomes = [make_record(0), make_large_record(1), make_failure(2), make_record(3)]
    for outcome in [*outcomes, outcomes[0]]:
        for frame in make_frames(outcome, manifest.uid):
            stream.publish(frame)
    stream.publish(b"poison")
    Writer(folder, open_stream(url, manifest.uid)).run(stopping=lambda: True)
    run = raylens.open(tmp_path)["demo"]
    assert all(same(run[outcome.id], outcome) for outcome in outcomes)
    assert run.counts()["complete"]
    assert len(run.quarantine()) == 1
    assert stream.length() == 0
    stream.drop()
    assert keys(url) == 0


@pytest.mark.parametrize(("kind", "access"), [("valkey9", "tls"), ("redis7", "tls"), ("redis8", "acl")])
def test_a_whole_run_through_it(kind: str, access: str, tmp_path: Path, model: Path) -> None:
    """Driver, actors and writer all reach the server; beside it another run's stream stays as it is; no key is left, and
    the password is nowhere: not in the output, not in the store."""
    corpus = tmp_path / "prompts.txt"
    corpus.write_text("\n".join(sentences(40, 5)))
    with reach(kind, access, tmp_path) as url:
        other = Stream(url, "another")
        other.create()
        entry = other.publish(b"frame")
        store = tmp_path / "store"
        done = raylens_command(
            "run", str(corpus), "--format", "lines", "-m", str(model), "-o", str(store), "--redis", url, "--name", "through"
        )
        assert done.returncode == 0, done.stderr
        assert raylens.open(store)["through"].counts()["records"] == 40
        assert other.missing([entry]) == set()
        assert keys(url) == 1
        other.drop()
        other.close()
    for written in [done.stdout, done.stderr, *(path.read_text("latin-1") for path in store.rglob("*") if path.is_file())]:
        assert PASSWORD not in written


def test_a_run_that_is_over_leaves_no_key(tmp_path: Path, model: Path) -> None:
    """After a driver that was killed after its last commit, the same command removes the key; ``--fresh`` that of the old run."""
    corpus = tmp_path / "prompts.txt"
    corpus.write_text("\n".join(sentences(3, 5)))
    with reach("valkey9", "socket", tmp_path) as url:
        command = ["run", str(corpus), "--format", "lines", "-m", str(model), "-o", str(tmp_path / "store"), "--redis", url]
        for fresh in ([], ["--fresh"]):
            done = raylens_command(*command, "--name", "over")
            assert done.returncode == 0, done.stderr
            run = RunFolder(tmp_path / "store" / "runs" / "over")
            with closing(Stream(url, read_manifest(run).uid)) as left:
                left.create()
                left.publish(b"frame")
            assert keys(url) == 1
            done = raylens_command(*command, "--name", "over", *fresh)
            assert done.returncode == 0, done.stderr
            assert keys(url) == 0


def commands() -> list[str]:
    """What the shipped ACL line allows."""
    return [word.removeprefix("+") for word in RIGHTS.split() if word.startswith("+")]


def test_the_shipped_acl_gives_what_the_embedded_server_gives() -> None:
    """One list of rights for both; nothing of a whole category."""
    shipped = (INFRA / "redis.acl").read_text().splitlines()
    assert shipped == ["user default off", f"user raylens on >CHANGE-ME {RIGHTS}"]
    assert "+@" not in RIGHTS


@pytest.fixture(params=KINDS, scope="module")
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server started from the shipped configuration, without user and password."""
    with acl_server(request.param, tmp_path_factory.mktemp("acl")) as port:
        yield f"127.0.0.1:{port}"


def refused(url: str, *command: Any) -> None:
    errors = (redis.exceptions.NoPermissionError, redis.exceptions.AuthenticationError)
    with connect(url, retries=0) as client, pytest.raises(errors):
        client.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ["KEYS", "*"], ["SCAN", "0"], ["FLUSHALL"], ["CONFIG", "GET", "*"], ["CONFIG", "SET", "maxmemory", "0"], ["ACL", "LIST"],
        ["EVAL", "return 1", "0"], ["SHUTDOWN", "NOSAVE"], ["SAVE"], ["CLIENT", "LIST"], ["MONITOR"],
        ["SET", "raylens:a", "v"], ["GET", "raylens:a"], ["XTRIM", "raylens:a", "MAXLEN", "0"],
        ["RENAME", "raylens:a", "raylens:b"],
        ["EXISTS", "others"], ["XGROUP", "CREATE", "others", "g", "$", "MKSTREAM"], ["XGROUP", "DESTROY", "raylens:a", "g"],
        ["XADD", "others", "*", "f", "v"], ["XREAD", "STREAMS", "others", "0"], ["XRANGE", "others", "-", "+"], ["DEL", "others"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_shipped_acl_refuses_all_else(shipped: str, command: list[str]) -> None:
    """Dangerous commands, other commands on its own keys, and its own commands on others' keys."""
    refused(f"redis://raylens:{PASSWORD}@{shipped}", *command)


def test_the_shipped_configuration_lets_no_stranger_in(shipped: str) -> None:
    """Without the password nothing answers, not even PING."""
    refused(f"redis://{shipped}", "PING")


def test_the_shipped_configuration_keeps_results(shipped: str) -> None:
    """A limit, nothing evicted, nothing on disk."""
    with connect(f"redis://raylens:{PASSWORD}@{shipped}") as client:
        found = client.info()
    assert found["maxmemory"] == 1 << 30
    assert found["maxmemory_policy"] == "noeviction"
    assert found["aof_enabled"] == 0


def test_the_shipped_configuration_takes_no_value_larger_than_a_frame(shipped: str) -> None:
    """It is refused by its size, before its bytes are sent."""
    url = f"redis://raylens:{PASSWORD}@{shipped}"
    stream = Stream(url, "large", retries=0)
    stream.create()
    # the client reads the server's words, or finds the connection closed while it sends
    with connect(url, retries=0) as client, pytest.raises((redis.ConnectionError, redis.ResponseError)):
        client.execute_command("XADD", stream_key("large"), "*", "f", bytes(MAX_VALUE_BYTES + 1))
    stream.publish(bytes(MAX_FRAME_BYTES))
    assert stream.length() == 1
    stream.drop()
    stream.close()


@pytest.fixture(scope="module")
def short_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server with a user for each command, who has all rights but that one."""
    acl = tmp_path_factory.mktemp("acl") / "users.acl"
    acl.write_text(
        "".join(f"user no-{command} on nopass {RIGHTS.replace(f'+{command} ', '')} -{command}\n" for command in commands())
    )
    with RealServer("valkey9", "--aclfile", str(acl)) as server:
        yield server


@pytest.mark.parametrize("command", commands())
def test_every_right_is_needed(command: str, short_of_one: RealServer) -> None:
    """Without any one of them a run is refused at its start, by an error that names the list."""
    url = f"unix://no-{command}:any@{short_of_one.socket}?db=1"
    with pytest.raises(BrokerError, match=r"no permissions.*give its user the rights that infra/redis.acl lists"):
        check_server(url)


def test_a_full_server_is_not_refused() -> None:
    """It is waited for, as it may be another run's results that fill it."""
    with RealServer("redis7", "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        check_server(server.url)


@pytest.fixture(params=KINDS, scope="module")
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of a server that speaks TLS, and the folder of its authority."""
    folder = tmp_path_factory.mktemp("tls")
    with tls_server(request.param, folder, secure_with(folder)) as port:
        yield port, folder


def test_a_server_that_takes_no_writes_is_waited_for(open_stream: Callable[..., Stream]) -> None:
    """As while another takes its place: an actor keeps what it has, and sends it when the server is a primary again."""
    record = make_record(0)
    with RealServer("valkey9") as server, connect(server.url) as client, ThreadPoolExecutor(1) as actor:
        stream = open_stream(server.url, "run", retries=1)
        stream.create()
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(ServerRefuses):
            stream.publish(b"frame")
        with pytest.raises(BrokerError, match="it is a replica: give the URL of the server that takes writes"):
            check_server(server.url)
        sent = actor.submit(publish, stream, "run", record, patient=True)
        with pytest.raises(TimeoutError):  # as long as it is asked to
            sent.result(timeout=1)
        client.replicaof("NO", "ONE")
        assert len(sent.result(timeout=HUNG).entries) == stream.length() == 1


def test_a_server_short_of_replicas_takes_no_writes(open_stream: Callable[..., Stream]) -> None:
    """Which it says, as where its disk is full, in words that redis-py has no error for."""
    with RealServer("valkey9", "--min-replicas-to-write", "1") as server, connect(server.url) as client:
        stream = open_stream(server.url, "run", retries=1)
        with pytest.raises(ServerRefuses, match="NOREPLICAS"):
            stream.create()
        with pytest.raises(BrokerError, match="it takes no writes until that is mended; its log says more"):
            check_server(server.url)
        client.config_set("min-replicas-to-write", "0")
        stream.create()


def test_what_a_url_cannot_say(open_stream: Callable[..., Stream]) -> None:
    """Options of redis-py that would change the replies are left aside; what it does not know is refused."""
    with RealServer("valkey9") as server:
        stream = open_stream(f"{server.url}?protocol=3&decode_responses=true", "run")
        stream.create()
        stream.publish(b"\xff")
        assert [data for _, data in stream.read("0-0", 10)] == [b"\xff"]
    for url in ("rediss://x/0?ssl_cert_reqs=bogus", "redis://x/0?what=1"):
        with pytest.raises(BrokerError, match="not a URL that can be used"):
            connect(url)


def test_an_unknown_authority_is_refused(secured: tuple[int, Path], tmp_path: Path) -> None:
    """A server with a certificate by an authority that was not named, or by another one, is one clear error with the remedy."""
    secure_with(tmp_path)
    for query in ("", f"?ssl_ca_certs={tmp_path}/ca.crt"):
        with pytest.raises(BrokerError, match=r"CERTIFICATE_VERIFY_FAILED.*; name the certificate authority's file") as failed:
            check_server(f"rediss://:{PASSWORD}@127.0.0.1:{secured[0]}{query}")
        assert PASSWORD not in str(failed.value)


def test_an_authority_that_is_not_there(secured: tuple[int, Path], tmp_path: Path) -> None:
    """The error speaks of the file, which the system's own words do not."""
    url = f"rediss://:{PASSWORD}@127.0.0.1:{secured[0]}?ssl_ca_certs={tmp_path}/none.crt"
    for ask in (check_server, lambda url: server_status(url, [])):
        with pytest.raises(BrokerError, match=r"No such file or directory; is there the file that the URL names"):
            ask(url)


def test_a_server_with_tls_is_not_asked_without(secured: tuple[int, Path]) -> None:
    """The error says how the URL begins."""
    with pytest.raises(BrokerError, match="begins with rediss://"):
        check_server(f"redis://127.0.0.1:{secured[0]}")


def test_a_server_without_tls_is_not_asked_with_it(shipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how the URL begins, though such a server just stays silent."""
    monkeypatch.setattr(stream_module, "CHECK_SECONDS", 1)
    with pytest.raises(BrokerError, match="begins with redis://"):
        check_server(f"rediss://{shipped}")


def test_a_run_with_the_wrong_authority_says_so(secured: tuple[int, Path], tmp_path: Path, model: Path) -> None:
    """The command ends with exit code 5 before Ray starts, and shows no password."""
    url = f"rediss://:{PASSWORD}@127.0.0.1:{secured[0]}"
    done = raylens_command("run", "--text", "call me", "-m", str(model), "-o", str(tmp_path / "store"), "--redis", url, "--json")
    assert done.returncode == 5
    assert "?ssl_ca_certs=" in done.stderr
    assert "starting Ray" not in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
