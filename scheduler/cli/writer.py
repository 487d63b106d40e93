"""``raylens writer``."""

import sys
from functools import partial

import click

from raylens.scheduler.cli._options import one_store, store_option
from raylens.scheduler.cli._output import say
from raylens.storage.errors import EXIT_STOPPED


@click.command("writer")
@click.argument("stores", metavar="[STORE]", nargs=-1)
@store_option
@click.option("--redis", required=True, metavar="URL", help="Server that raylens run uses.")
@click.option("--run", "name", help="Serve only this run, until it is complete; by default every run that asks, until Ctrl-C.")
@click.option("--helpers", type=int, help="Maximum number of processes that help each writer; by default a quarter of the cores.")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on this port, at /metrics.")
def command(
    stores: tuple[str, ...], store: str, redis: str, name: str | None, helpers: int | None, metrics_port: int | None
) -> None:
    """Store the results of runs that were started with --writer external, on the machine that holds STORE.

    The drivers must see the same folder; they may stop and resume meanwhile. Exit codes: 0 the run is complete, 6 another
    writer took it over or it is damaged, 130 stopped, after storing what has arrived.
    """
    from raylens.scheduler.stopping import Stopping
    from raylens.scheduler.writer_service import WriterService
    from raylens.storage.layout import check_writable
    from raylens.storage.paths import given_path

    folder = given_path(one_store(stores, store), "STORE")
    check_writable(folder)
    service = WriterService(folder, redis, name, helpers, partial(say, err=True))
    if metrics_port is not None:
        from raylens.scheduler.writer_metrics import WriterMetrics

        WriterMetrics(redis, service.served).serve(metrics_port)
    with Stopping() as stopping:
        complete = service.run(stopping)
    if not complete:
        sys.exit(EXIT_STOPPED)
