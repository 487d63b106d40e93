"""What ``raylens writer --metrics-port`` tells Prometheus."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Lock

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from raylens.storage.errors import BrokerError, StoreError, UsageError
from raylens.storage.layout import RunFolder
from raylens.storage.server_status import server_status
from raylens.storage.status import Status, status
from raylens.storage.tally import Tally


class WriterMetrics(Collector):
    """Read when they are asked for, so they cost nothing in between.

    Args:
        redis: URL of the server.
        served: gives each run that is written now, its tally, and how often its writer was started again.
    """

    def __init__(self, redis: str, served: Callable[[], list[tuple[RunFolder, Tally, int]]]) -> None:
        self._redis = redis
        self._served = served
        self._lock = Lock()  # two may ask at once

    def serve(self, port: int) -> None:
        """Serve http://HOST:port/metrics on every address, in threads that end with the process.

        Raises:
            UsageError: the port cannot be used.
        """
        registry = CollectorRegistry()
        registry.register(self)
        try:
            start_http_server(port, registry=registry)
        except (OSError, OverflowError) as error:
            raise UsageError(f"--metrics-port {port}: {error}; choose another") from error

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures now; those of a server that is away are left out."""
        with self._lock:
            found = self._statuses()
        yield _family("prompts", "Prompts of the corpus.", {one.run: one.prompts for one, _ in found})
        yield _family("stored_prompts", "Prompts stored, failures among them.", {one.run: one.stored for one, _ in found})
        yield _family("stored_tokens", "Tokens of the stored prompts.", {one.run: one.tokens for one, _ in found})
        yield _family("failures", "Prompts stored as failures.", {one.run: sum(one.failures.values()) for one, _ in found})
        yield _family("quarantined", "Entries refused into quarantine.", {one.run: one.quarantined for one, _ in found})
        yield _family("writer_restarts", "Times the run's writer was started again.", {one.run: times for one, times in found})
        with suppress(BrokerError):
            server = server_status(self._redis, [one.uid for one, _ in found])
            backlog = {one.run: (server.streams or {})[one.uid] for one, _ in found}
            yield _family("backlog_entries", "Entries that wait in the server for the writer.", backlog)
            yield GaugeMetricFamily("raylens_server_used_bytes", "Bytes that the server holds.", server.used_bytes)
            yield GaugeMetricFamily("raylens_server_limit_bytes", "Bytes that it may hold; 0 is no limit.", server.limit_bytes)

    def _statuses(self) -> list[tuple[Status, int]]:
        found = []
        for folder, tally, restarts in self._served():
            with suppress(StoreError):  # which the writer tells
                found.append((status(folder, tally), restarts))
        return found


def _family(name: str, text: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"raylens_{name}", text, labels=["run"])
    for run, value in values.items():
        family.add_metric([run], value)
    return family
