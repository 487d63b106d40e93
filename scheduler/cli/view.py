"""``raylens view``."""

import click

from raylens.scheduler.cli._options import DEFAULT_STORE


@click.command("view")
@click.argument("store", default=DEFAULT_STORE, envvar="RAYLENS_STORE")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than this machine's own need a token."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen on; 0 is any free one."
)
def command(store: str, host: str, port: int) -> None:
    """Look at the runs of STORE in a browser, also while they are going. Ctrl-C ends it.

    Its pages, and the JSON of each: docs/PAGES.md.
    """
    from raylens.storage.site.serving import serve

    serve(store, host, port, lambda address: click.echo(f"raylens: {address}"))
