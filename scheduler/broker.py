"""The server of a run: embedded and watched, or the user's own."""

import time
from types import TracebackType

from raylens.storage.server import EmbeddedServer
from raylens.storage.stream import check_server

#: Seconds between two looks at the embedded server.
WATCH_SECONDS = 1.0


class Broker:
    """A running server at ``url``.

    Args:
        redis: ``embedded`` or a URL.

    Raises:
        BrokerError: it cannot be started or reached, or may evict.
    """

    def __init__(self, redis: str) -> None:
        self._embedded = EmbeddedServer() if redis == "embedded" else None
        self.url = self._embedded.url if self._embedded is not None else redis
        self.restarts = 0
        self._looked = time.monotonic()
        if self._embedded is None:
            check_server(self.url)

    def watch(self) -> None:
        """Start the embedded server anew if it died; what it held is resubmitted by receipt.

        Raises:
            BrokerError: it does not start again.
        """
        if self._embedded is None or time.monotonic() - self._looked < WATCH_SECONDS:
            return
        self._looked = time.monotonic()
        if not self._embedded.alive():
            self._embedded.restart()
            self.restarts += 1

    def __enter__(self) -> "Broker":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._embedded is not None:
            self._embedded.close()
