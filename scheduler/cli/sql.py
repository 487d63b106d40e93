"""``raylens sql``."""

import click

from raylens.scheduler.cli._options import open_store, store_option
from raylens.scheduler.cli._rows import output_options, print_rows
from raylens.storage.errors import UsageError


@click.command("sql")
@click.argument("words", metavar="[STORE] SELECT", nargs=-1, required=True)
@store_option
@click.option("--run", "name", metavar="RUN", help="Over this run only; all of the store by default.")
@output_options
def command(words: tuple[str, ...], store: str, name: str | None, as_json: bool, as_csv: bool, parquet: str | None) -> None:
    """Run one SELECT over the runs of a store, in DuckDB's SQL; the store may come first, or by --store.

    The views are prompts, positions, metrics, topk, tracked, decisions and failures (docs/QUERIES.md). Nothing is written, and
    SQL reaches neither other files nor the network.
    """
    if len(words) > 2:
        raise UsageError(f"sql takes a store and one SELECT, not {len(words)} words; put the statement in quotes")
    *stores, statement = words
    found = open_store(stores[0] if stores else store)
    result = found.sql(statement) if name is None else found[name].sql(statement)
    print_rows(result, as_json, as_csv, parquet)
