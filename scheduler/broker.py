"""The server of a run: embedded and watched, or the user's own."""

import time

from raylens.storage.errors import BrokerError, ServerRefuses
from raylens.storage.server import EmbeddedServer
from raylens.storage.server_memory import Memory
from raylens.storage.stream import CHECK_SECONDS, Stream, check_server
from raylens.storage.urls import redact

#: Seconds between two looks at the server.
WATCH_SECONDS = 1.0
#: Seconds without an answer of the user's server after which a run ends; it can be resumed.
MAX_AWAY_SECONDS = 120.0


class Broker:
    """A running server at ``url``.

    Args:
        redis: ``embedded`` or a URL.

    Attributes:
        away: why it did not answer, or took no writes, when ``watch`` last asked; empty if it did.

    Raises:
        BrokerError: it cannot be started or reached, or may evict.
    """

    def __init__(self, redis: str) -> None:
        self._embedded = EmbeddedServer() if redis == "embedded" else None
        self.url = self._embedded.url if self._embedded is not None else redis
        self._looked = self._answered = time.monotonic()
        if self._embedded is None:
            check_server(self.url)
        self._probe = Stream(self.url, "probe", retries=0, seconds=CHECK_SECONDS)  # one connection for all looks
        self.away = ""

    def watch(self) -> None:
        """Start the embedded server anew if it died; what it held is resubmitted by receipt. Wait for the user's own.

        Raises:
            BrokerError: it does not start again, or has not answered for two minutes.
        """
        now = time.monotonic()
        if now - self._looked < WATCH_SECONDS:
            return
        self._looked = now
        self.away = ""
        try:
            self._probe.ping()
        except ServerRefuses as error:  # it is there, and is waited for as long as it takes
            self.away = str(error)
        except BrokerError as error:
            self.away = str(error)
            self._missed(now)
            return
        self._answered = now

    def _missed(self, now: float) -> None:
        if self._embedded is not None:
            self._embedded.restart()
        elif now - self._answered > MAX_AWAY_SECONDS:
            raise BrokerError(f"--redis {redact(self.url)}: has not answered for {MAX_AWAY_SECONDS:.0f} seconds; is it up?")

    def memory(self) -> Memory:
        """What the server holds, and may hold.

        Raises:
            BrokerError: it does not answer.
        """
        return self._probe.memory()

    def largest_value(self) -> int | None:
        """Bytes of a value that the server takes at most; None where it does not tell.

        Raises:
            BrokerError: it does not answer.
        """
        return self._probe.largest_value()

    def full(self) -> bool:
        """Whether the server is at its memory limit; False also if it does not answer."""
        try:
            return not self.away and self.memory().full
        except BrokerError:
            return False

    def __enter__(self) -> "Broker":
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.close()
        if self._embedded is not None:
            self._embedded.close()
