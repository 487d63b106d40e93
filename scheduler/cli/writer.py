"""``raylens writer``."""

import sys
from functools import partial

import click

from raylens.scheduler.cli._options import say
from raylens.storage.errors import EXIT_STOPPED


@click.command("writer")
@click.argument("store", envvar="RAYLENS_STORE")
@click.option("--redis", required=True, metavar="URL", help="The server that raylens run uses.")
@click.option("--run", "name", help="Only this run, to its end; all that ask, until Ctrl-C, by default.")
@click.option("--helpers", type=int, help="Processes that may store for a writer; a quarter of the cores by default.")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics at this port's /metrics.")
def command(store: str, redis: str, name: str | None, helpers: int | None, metrics_port: int | None) -> None:
    """Store the results of runs that were started with --writer external, on the machine that holds STORE.

    The folder must be one that the driver sees too. Drivers may end and resume meanwhile. Exit code 0 when the run is
    complete, 6 when another writer took it over or it is damaged, 130 when stopped; what is complete is stored first.
    """
    from raylens.scheduler.stopping import Stopping
    from raylens.scheduler.writer_service import WriterService
    from raylens.storage.layout import check_writable
    from raylens.storage.paths import given_path

    folder = given_path(store, "STORE")
    check_writable(folder)
    service = WriterService(folder, redis, name, helpers, partial(say, err=True))
    if metrics_port is not None:
        from raylens.scheduler.writer_metrics import WriterMetrics

        WriterMetrics(redis, service.served).serve(metrics_port)
    with Stopping() as stopping:
        complete = service.run(stopping)
    if not complete:
        sys.exit(EXIT_STOPPED)
