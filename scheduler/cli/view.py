"""``raylens view``."""

import click

from raylens.scheduler.cli._options import one_store, store_option


@click.command("view")
@click.argument("stores", metavar="[STORE]", nargs=-1)
@store_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; with any but this machine's own, readers need a token.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen on; 0 picks a free one."
)
def command(stores: tuple[str, ...], store: str, host: str, port: int) -> None:
    """Serve the runs of STORE to your browser, also while they are in progress. Ctrl-C stops it.

    docs/PAGES.md describes the pages and the JSON of each.
    """
    from raylens.storage.site.serving import serve

    serve(one_store(stores, store), host, port, lambda address: click.echo(f"raylens: {address}"))
