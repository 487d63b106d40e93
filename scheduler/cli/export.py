"""``raylens export``."""

from typing import Any

import click

from raylens.scheduler.cli._options import open_run, store_option, write_bytes
from raylens.storage.errors import UsageError
from raylens.storage.exports import jsonl


@click.command("export")
@click.argument("address", metavar="RUN")
@store_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl"]),
    default="jsonl",
    show_default=True,
    help="jsonl: a record or failure a line.",
)
@click.option("-o", "--output", metavar="FILE", help="File to write; stdout by default.")
def command(address: str, store: str, kind: str, output: str | None) -> None:  # noqa: ARG001  more formats to come
    """Write every record and failure of RUN, in corpus order."""
    run, prompt = open_run(store, address)
    if prompt is not None:
        raise UsageError(f"{address!r} names a prompt; name a run, or use: raylens show {address} --json")

    def write(file: Any) -> None:
        for line in jsonl.lines(run):
            file.write(line)

    write_bytes(output, write)
    if output not in {None, "-"}:
        click.echo(f"{len(run):,} lines: {output}", err=True)
