"""How much memory a server holds, and when it counts as full."""

from dataclasses import dataclass

import redis

#: A server counts as full from this part of its memory limit, or where this much is left: a frame that arrives takes its
#: size twice, and is refused before it is stored.
FULL = 0.9
FRAME_ROOM = 3 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a server holds, and that it may hold; a limit of 0 is none."""

    used: int
    limit: int

    @property
    def full(self) -> bool:
        """Whether the server is at its limit, or so close that a frame may be refused."""
        return self.limit > 0 and self.used >= min(self.limit * FULL, self.limit - FRAME_ROOM)


def memory_of(client: redis.Redis) -> Memory:
    """What a server says of itself."""
    found = client.info("memory")
    return Memory(int(found["used_memory"]), int(found.get("maxmemory", 0)))
