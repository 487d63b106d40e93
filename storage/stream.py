"""The Redis stream between actors and writer: bytes in, bytes out (docs/PROTOCOL.md).

Only commands of Redis 6.2 are used, so Redis and Valkey of any current version serve. Nothing here is ever the truth of
what is done: a server may lose everything at any time.
"""

import random
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from raylens.storage.errors import BrokerError, ServerFull, ServerRefuses, StreamGone, one_line
from raylens.storage.server_memory import Memory, memory_of
from raylens.storage.urls import redact

#: A full or restarting server is waited for about this many times, up to 2 s each, before the caller hears of it.
RETRIES = 30
#: Seconds to wait for an answer; at the start of a run, and in a loop that asks again and has other things to look after.
ANSWER_SECONDS = 30
CHECK_SECONDS = 10
#: Entries fetched at once; with frames of 1 MiB this bounds the reader's memory.
READ_COUNT = 16
#: Bytes of one value that a server should take, at most: no frame is larger, and what a server has taken is read whole before it
#: is refused. Servers take 512 MiB unless they are told, and can be told no less than 1 MiB.
MAX_VALUE_BYTES = 2 << 20
#: Entries asked for at once by ``missing``, whose answers hold their frames.
ASK_COUNT = 64

#: The consumer group that ``create`` makes, as no other command makes an empty stream; nobody reads through it.
GROUP = "raylens"
#: What a server calls an entry.
_ID = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")

#: Options of a URL that are not its to choose: they change the shape of replies.
_OURS = frozenset({"protocol", "decode_responses"})
#: What a server says that takes no writes just now, as while another takes its place.
_REFUSES = (redis.exceptions.ReadOnlyError, redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError)
#: How the words for that begin where redis-py has no name for it: its disk cannot be written, or its replicas are away.
_REFUSING = ("MISCONF", "NOREPLICAS")
_WAIT_FOR = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.OutOfMemoryError,
    *_REFUSES,
)


def stream_key(run: str) -> str:
    """The one key a run uses; the braces keep it on one node of a Redis Cluster."""
    return f"raylens:{{{run}}}:frames"


class _Jitter(ExponentialWithJitterBackoff):
    """redis-py's, which draws from Python's one generator; a program that has seeded that goes on as without a server."""

    _random = random.SystemRandom()

    def compute(self, failures: int) -> float:
        return float(min(self._cap, self._random.random() * self._base * 2**failures))


def _waiting(retries: int, *errors: type[Exception]) -> Retry:
    return Retry(_Jitter(base=0.02, cap=2.0), retries, supported_errors=errors)


def connect(url: str, retries: int = RETRIES, seconds: float = ANSWER_SECONDS) -> "redis.Redis":
    """A client that waits with jitter while the server is full, loading or away, or takes no writes.

    Raises:
        BrokerError: the URL is not a Redis URL.
    """
    try:
        client: redis.Redis = redis.Redis.from_url(
            _without(url, _OURS),
            retry=_waiting(retries, *_WAIT_FOR),
            protocol=2,  # one shape of replies on every server version
            socket_timeout=seconds,
            socket_connect_timeout=CHECK_SECONDS,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # unknown options are found here, or not before the first command
    except (ValueError, TypeError, redis.RedisError):  # whose text may hold a piece of a password
        raise BrokerError(
            f"--redis {redact(url)}: not a URL that can be used; write redis://, rediss:// or unix://, "
            "and the signs @ : / ? # % of a password as %40 %3A %2F %3F %23 %25"
        ) from None
    return client


def _without(url: str, names: frozenset[str]) -> str:
    """The URL without some of its options."""
    place, _, options = url.partition("?")
    kept = "&".join(option for option in options.split("&") if option.partition("=")[0] not in names)
    return f"{place}?{kept}" if kept else place


def check_server(url: str) -> None:
    """Refuse a server that cannot be reached, that does not let a run do what it does, or that may evict frames.

    Raises:
        BrokerError: with the remedy.
    """
    try:
        with connect(url, retries=1, seconds=CHECK_SECONDS) as client:
            client.ping()
            memory = client.info("memory")
            _check_rights(client, stream_key(f"check-{secrets.token_hex(8)}"))
    except redis.RedisError as error:
        raise refusal(url, error) from error
    policy = memory.get("maxmemory_policy", "noeviction")
    if int(memory.get("maxmemory", 0)) > 0 and policy != "noeviction":
        raise BrokerError(f"--redis {redact(url)}: maxmemory-policy is {policy}, which may drop results; set it to noeviction")


def _check_rights(client: "redis.Redis", key: str) -> None:
    """Use every command of a run once, on a key of its own that does not outlive it."""
    try:
        with suppress(redis.exceptions.OutOfMemoryError):  # a full server is waited for, not refused
            client.exists(key)
            client.xgroup_create(key, GROUP, mkstream=True)
            client.xadd(key, {"f": b""}, nomkstream=True)
        client.xread({key: "0-0"})
        client.xrange(key, "0-1", "0-1")
        client.xdel(key, "0-1")
        client.xlen(key)
    finally:
        client.delete(key)


def refusal(url: str, error: redis.RedisError) -> BrokerError:
    """What a server's error comes to for the user."""
    return BrokerError(f"--redis {redact(url)}: {one_line(error).removesuffix('.')}; {_remedy(url, error)}")


def _remedy(url: str, error: redis.RedisError) -> str:
    text = str(error)
    if "Invalid stream ID" in text:  # an older server takes NOMKSTREAM for one
        return "Redis 6.2 or later is needed, or Valkey"
    if isinstance(error, redis.exceptions.ReadOnlyError):
        return "it is a replica: give the URL of the server that takes writes"
    if text.startswith(_REFUSING):
        return "it takes no writes until that is mended; its log says more"
    if isinstance(error, redis.exceptions.NoPermissionError):
        return "give its user the rights that infra/redis.acl lists"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "name the certificate authority's file as rediss://...?ssl_ca_certs=/path/ca.crt, on every machine"
    if url.startswith("rediss://") and "No such file" in text:
        return "is there the file that the URL names, such as ?ssl_ca_certs=/path/ca.crt?"
    # a server without TLS does not answer to a handshake: it waits for the end of the line
    if url.startswith("rediss://") and ("SSL" in text or isinstance(error, redis.TimeoutError)):
        return "is the server up, and does it speak TLS on this port? Without TLS the URL begins with redis://"
    if url.startswith("redis://") and ("closed" in text or "reset" in text):
        return "does the server expect TLS? Then the URL begins with rediss://"
    return "is the server running and the password right?"


class Stream:
    """One run's stream.

    Args:
        url: of the server.
        run: the run's unique id.
        retries, seconds: times that a server is waited for, and seconds for an answer each time.

    Every method raises BrokerError once the server has been away for longer than the client waits; ``publish`` and
    ``create`` its ServerFull once it has been full for as long. Nothing else asks the server for room, so all else works
    when it is full. What writes raises its ServerRefuses where the server takes no writes for as long.
    """

    def __init__(self, url: str, run: str, retries: int = RETRIES, seconds: float = ANSWER_SECONDS) -> None:
        self._client = connect(url, retries, seconds)
        self._gone = _waiting(retries, StreamGone, ServerRefuses)
        self._key = stream_key(run)
        self._url = redact(url)

    @contextmanager
    def _asking(self) -> Iterator[redis.Redis]:
        """The client, whose errors are told as ours."""
        try:
            yield self._client
        except redis.exceptions.OutOfMemoryError as error:
            raise ServerFull(f"{self._url}: {error}") from error
        except redis.RedisError as error:
            refuses = isinstance(error, _REFUSES) or str(error).startswith(_REFUSING)
            raise (ServerRefuses if refuses else BrokerError)(f"{self._url}: {error}") from error

    def _call(self, *command: Any) -> Any:
        with self._asking() as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def create(self) -> None:
        """Make the stream, unless it is there. Only a driver does, so what an actor sends after the end makes no new key."""
        if not self._call("EXISTS", self._key):  # asked first, as a full server would refuse to make what it has
            self._call("XGROUP", "CREATE", self._key, GROUP, "$", "MKSTREAM")

    def publish(self, frame: bytes) -> str:
        """Append a frame; the entry's id. A retried publish may append twice, which the writer tolerates.

        Raises:
            StreamGone: there is no stream, for longer than the client waits for the driver to make it.
        """
        return self._gone.call_with_retry(lambda: self._append(frame), lambda _: None)

    def _append(self, frame: bytes) -> str:
        entry = self._call("XADD", self._key, "NOMKSTREAM", "*", "f", frame)
        if entry is None:
            raise StreamGone(f"{self._url}: {self._key} is gone; has its run ended?")
        return bytes(entry).decode()

    def read(self, after: str, block_ms: int) -> list[tuple[str, bytes]]:
        """Up to ``READ_COUNT`` entries after an id, waiting ``block_ms`` milliseconds for the first.

        Raises:
            BrokerError: the server cannot be reached, or is none: an id of its own making would become a file's name.
        """
        with self._asking() as client:
            reply: Any = client.xread({self._key: after}, count=READ_COUNT, block=block_ms)
        found = [(entry_id, fields.get(b"f", b"")) for _, entries in reply or [] for entry_id, fields in entries]
        if not all(_ID.fullmatch(entry_id) for entry_id, _ in found):
            raise BrokerError(f"{self._url}: gives entries ids that no Redis gives")
        return [(entry_id.decode("ascii"), frame) for entry_id, frame in found]

    def missing(self, entry_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are no longer in the stream."""
        found: set[str] = set()
        for start in range(0, len(entry_ids), ASK_COUNT):
            asked = entry_ids[start : start + ASK_COUNT]
            with self._asking() as client:
                pipeline = client.pipeline(transaction=False)
                for entry_id in asked:
                    pipeline.xrange(self._key, entry_id, entry_id)
                replies = pipeline.execute()
            found.update(entry_id for entry_id, reply in zip(asked, replies, strict=True) if reply)
        return set(entry_ids) - found

    def delete(self, entry_ids: Iterable[str]) -> None:
        """Remove entries, a thousand to a command."""
        ids = list(entry_ids)
        for start in range(0, len(ids), 1000):
            self._call("XDEL", self._key, *ids[start : start + 1000])

    def length(self) -> int:
        """Entries in the stream."""
        return int(self._call("XLEN", self._key))

    def memory(self) -> Memory:
        """What the server holds, of this run and of others."""
        with self._asking() as client:
            return memory_of(client)

    def largest_value(self) -> int | None:
        """Bytes of a value that the server takes at most; None where it does not tell this user."""
        name = "proto-max-bulk-len"
        with self._asking() as client:
            try:
                return int(str(client.config_get(name)[name]))
            except (redis.exceptions.ResponseError, KeyError, ValueError):
                return None

    def drop(self) -> None:
        """Remove the stream itself; a finished run leaves no key."""
        self._call("DEL", self._key)

    def ping(self) -> None:
        """Raise BrokerError unless the server answers, and ServerRefuses if it takes no writes."""
        self._call("XDEL", self._key, "0-1")  # no entry has this id

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
