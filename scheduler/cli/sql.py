"""``raylens sql``."""

import click

from raylens.scheduler.cli._options import open_store, store_option
from raylens.scheduler.cli._rows import output_options, print_rows


@click.command("sql")
@click.argument("statement", metavar="SELECT")
@store_option
@click.option("--run", "name", metavar="RUN", help="Over this run only; all of the store by default.")
@output_options
def command(statement: str, store: str, name: str | None, as_json: bool, as_csv: bool, parquet: str | None) -> None:
    """Run one SELECT over the runs of the store, in DuckDB's SQL.

    The views are prompts, positions, metrics, topk, tracked, decisions and failures (docs/QUERIES.md). Nothing is written, and
    SQL reaches neither other files nor the network.
    """
    found = open_store(store)
    result = found.sql(statement) if name is None else found[name].sql(statement)
    print_rows(result, as_json, as_csv, parquet)
