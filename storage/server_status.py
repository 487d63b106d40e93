"""What a server holds of the runs that go through it."""

from typing import Any

import msgspec
import redis

from raylens.storage.server_memory import memory_of
from raylens.storage.stream import CHECK_SECONDS, connect, refusal, stream_key

_KEYS = stream_key("*").replace("{", "[{]").replace("}", "[}]")


class ServerStatus(msgspec.Struct, frozen=True):
    """A server at one moment.

    Attributes:
        used_bytes, limit_bytes: of its memory, by all its users; a limit of 0 is none.
        streams: id of a run -> entries that wait for its writer; None where the user may not look for all.
    """

    used_bytes: int
    limit_bytes: int
    streams: dict[str, int] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value


def server_status(url: str, uids: list[str] | None = None) -> ServerStatus:
    """Ask a server.

    Args:
        url: of the server.
        uids: ids of the runs to ask for; None looks for every run's stream, for which its user needs SCAN.

    Raises:
        BrokerError: it does not answer.
    """
    try:
        with connect(url, retries=1, seconds=CHECK_SECONDS) as client:
            memory = memory_of(client)
            found = uids if uids is not None else _found(client)
            streams = {uid: int(client.xlen(stream_key(uid))) for uid in found} if found is not None else None
    except redis.RedisError as error:
        raise refusal(url, error) from error
    return ServerStatus(memory.used, memory.limit, streams)


def _found(client: "redis.Redis") -> list[str] | None:
    try:
        keys = [key.decode(errors="replace") for key in client.scan_iter(match=_KEYS, count=1000)]
    except redis.exceptions.NoPermissionError:
        return None
    return sorted(key.partition("{")[2].partition("}")[0] for key in keys)
