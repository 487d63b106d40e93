"""``raylens sql``."""

from typing import TYPE_CHECKING

import click

from raylens.scheduler.cli._options import one_store, open_store, store_option
from raylens.scheduler.cli._rows import output_options, print_rows
from raylens.storage.errors import RaylensError, StoreError

if TYPE_CHECKING:
    from raylens.storage.database import LeftOut
    from raylens.storage.run import Run
    from raylens.storage.store import Store


@click.command("sql")
@click.argument("words", metavar="[STORE] SELECT", nargs=-1, required=True)
@store_option
@click.option("--run", "name", metavar="RUN", help="Query only this run; by default all runs of the store.")
@output_options
def command(words: tuple[str, ...], store: str, name: str | None, as_json: bool, as_csv: bool, parquet: str | None) -> None:
    """Run one SELECT, in DuckDB's SQL, over the runs of a store.

    The views are prompts, positions, metrics, topk, tracked, decisions and failures (docs/QUERIES.md). Nothing is written, and
    the SQL can reach neither other files nor the network.
    """
    *stores, statement = words
    found = open_store(one_store(stores, store))
    if name is not None:
        print_rows(found[name].sql(statement), as_json, as_csv, parquet)
        return
    from raylens.storage.result import sql_query

    left_out: list[str] = []

    def leave_out(run: str, error: StoreError) -> None:
        left_out.append(f"run {run} is left out: {error}")

    runs = _readable(found, leave_out)
    if runs or not left_out:
        try:
            print_rows(sql_query(runs, statement, left_out=leave_out), as_json, as_csv, parquet)
        except RaylensError as error:
            unsaid = [words for words in left_out if words.partition(": ")[2] not in str(error)]
            error.args = ("; ".join([str(error), *unsaid]),)
            raise
    if left_out:
        raise StoreError("; ".join(left_out))


def _readable(store: "Store", leave_out: "LeftOut") -> "list[Run]":
    runs = []
    for name in store.names():
        try:
            runs.append(store[name])
        except StoreError as error:  # one damaged run does not hide the others
            leave_out(name, error)
    return runs
