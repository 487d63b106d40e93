"""``raylens export``."""

from typing import Any

import click
import orjson

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
@click.option("--json", "as_json", is_flag=True, help="One JSON object that names the file; needs --output.")
def command(address: str, store: str, kind: str, output: str | None, as_json: bool) -> None:
    """Write every record and failure of RUN, in corpus order."""
    run, prompt = open_run(store, address)
    if prompt is not None:
        raise UsageError(f"{address!r} names a prompt; name a run, or use: raylens show {address} --json")
    to_stdout = output in {None, "-"}
    if as_json and to_stdout:
        raise UsageError("--json: the records themselves go to stdout; give --output FILE")

    def write(file: Any) -> None:
        for line in jsonl.lines(run):
            file.write(line)

    write_bytes(output, write)
    if as_json:
        click.echo(orjson.dumps({"file": output, "format": kind, "run": run.name, "lines": len(run)}))
    elif not to_stdout:
        click.echo(f"{len(run):,} lines: {output}", err=True)
