"""``raylens compare``."""

import click

from raylens.scheduler.cli._options import open_store, store_option
from raylens.scheduler.cli._rows import output_options, print_rows


@click.command("compare")
@click.argument("run", metavar="RUN")
@click.argument("other", metavar="OTHER")
@store_option
@output_options
def command(run: str, other: str, store: str, as_json: bool, as_csv: bool, parquet: str | None) -> None:
    """Compare two runs of the same prompts, by layer and tap of RUN.

    Prompts are matched by id and tokens. Models of different depth are compared at the same relative depth.
    """
    from raylens.storage.comparison import compare

    found = open_store(store)
    print_rows(compare(found[run], found[other]), as_json, as_csv, parquet)
