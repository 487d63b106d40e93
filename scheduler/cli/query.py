"""``raylens query``."""

from typing import Any

import click
import orjson

from raylens.scheduler.cli._options import open_run, store_option
from raylens.scheduler.cli._rows import output_options, print_rows
from raylens.storage.errors import UsageError
from raylens.storage.layers import FORMS as LAYERS
from raylens.storage.positions import FORMS as POSITIONS


@click.command("query")
@click.argument("address", metavar="[RUN]", required=False)
@click.argument("name", metavar="[NAME]", required=False)
@store_option
@click.option("--list", "only_list", is_flag=True, help="List the queries and the options of each.")
@click.option(
    "--token",
    multiple=True,
    metavar="TOKEN",
    help="Token to look for: its text, such as ' Paris', or id:N, or field:NAME as it was tracked; repeat for a set.",
)
@click.option("--to", metavar="TOKEN", help="attribution: tracked token whose logit is explained.")
@click.option("--minus", metavar="TOKEN", help="attribution: tracked token whose attribution is subtracted.")
@click.option("--tap", help="Tap to look at, or all.")
@click.option("--layers", help=f"Layers to look at: {LAYERS}.")
@click.option("--positions", help=f"Positions to look at: {POSITIONS}.")
@click.option(
    "--rank", metavar="N", help="token: look among the N best tokens of each place; promoted: list the N most frequent tokens."
)
@click.option("--by", metavar="KEY", help="Split the result by this key of the prompts' metadata.")
@click.option("--limit", metavar="N", help="Return at most N rows.")
@output_options
def command(
    address: str | None,
    name: str | None,
    store: str,
    only_list: bool,
    as_json: bool,
    as_csv: bool,
    parquet: str | None,
    **options: Any,
) -> None:
    """Run the named query NAME over RUN; without NAME, list the queries.

    Each query has its own options and defaults, which --list shows. docs/QUERIES.md explains them, with examples.
    """
    if only_list or name is None:
        if as_csv or parquet is not None:
            raise UsageError("--csv, --parquet: apply to the result of a query; name one")
        _list(as_json)
        return
    from raylens.storage.result import run_query

    run, prompt = open_run(store, str(address))
    if prompt is not None:
        raise UsageError(f"{address!r} names a prompt; queries are of a run: {run.name}")
    given = {option: value for option, value in options.items() if value not in {None, ()}}
    print_rows(run_query(run, name, given), as_json, as_csv, parquet)


def _list(as_json: bool) -> None:
    from raylens.storage.named_queries import named_queries

    queries = named_queries().values()
    if as_json:
        click.echo(
            orjson.dumps(
                [
                    {
                        "name": query.name,
                        "summary": query.summary,
                        "options": [
                            {"name": option.name, "default": option.default, "help": option.help} for option in query.options
                        ],
                    }
                    for query in queries
                ]
            )
        )
        return
    for query in queries:
        click.echo(f"{query.name}: {query.summary}")
        for option in query.options:
            click.echo(f"    {f'--{option.name}':12} {option.default or 'required':11} {option.help}")
