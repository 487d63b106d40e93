"""``raylens runs``."""

from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import one_store, open_store, store_option
from raylens.scheduler.cli._output import print_table
from raylens.storage.errors import StoreError

if TYPE_CHECKING:
    from raylens.storage.run import Run


@click.command("runs")
@click.argument("stores", metavar="[STORE]", nargs=-1)
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def command(stores: tuple[str, ...], store: str, as_json: bool) -> None:
    """List the runs of STORE, oldest first."""
    found, rows, damaged = open_store(one_store(stores, store)), [], []
    for name in found.names():
        try:
            rows.append(_row(found[name]))
        except StoreError as error:  # one damaged run does not hide the others
            damaged.append(str(error))
    _print(rows, as_json)
    if damaged:
        raise StoreError("; ".join(damaged))


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(orjson.dumps(rows))
        return
    print_table(["run", "created", "model", "prompts", "records", "failures", "state"], [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [f"{number:,}" for number in (row["prompts"], row["records"], sum(row["failures"].values()))]
    model = "?" if row["model"] is None else str(row["model"])
    model += ", edited" if row["edited"] else ""
    return [row["run"], row["created"], model, *numbers, "complete" if row["complete"] else "unfinished"]


def _row(run: "Run") -> dict[str, Any]:
    model, edited = run.manifest.sources.get("model"), run.manifest.edited
    return {"run": run.name, "created": run.manifest.created, "model": model, "edited": edited, **run.counts()}
