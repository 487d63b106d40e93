"""``raylens export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import open_run, store_option
from raylens.storage.errors import UsageError
from raylens.storage.exports import FORMATS
from raylens.storage.positions import FORMS

if TYPE_CHECKING:
    from raylens.storage.run import Run


@click.command("export")
@click.argument("address", metavar="RUN[/PROMPT]")
@store_option
@click.option(
    "--format",
    "kind",
    type=click.Choice([*FORMATS, "html"]),
    help="; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    + "; html: an interactive page of one prompt. By default chosen by --output: .parquet, .csv, .html, otherwise jsonl.",
)
@click.option("--positions", help=f"Positions on an html page: {FORMS}. By default all.")
@click.option("-o", "--output", metavar="PATH", help="File or folder to write; by default stdout.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object that names what was written; needs --output.")
def command(address: str, store: str, kind: str | None, positions: str | None, output: str | None, as_json: bool) -> None:
    """Export the records of RUN for other tools, in corpus order; jsonl includes the failures.

    A single prompt, RUN/PROMPT, can be exported as html, or with its generated steps as logitlens4llms.

    docs/EXPORTS.md describes every format and its fields, docs/PAGES.md the html page.
    """
    from raylens.storage.exporting import export, kind_of

    path = None if output in {None, "-"} else Path(str(output))
    kind = kind or kind_of(path)
    if as_json and path is None:
        raise UsageError("--json: the records themselves go to stdout; give --output FILE")
    run, prompt = open_run(store, address)
    export(run, path, kind, prompt, positions)
    if path is not None:
        _say(run, kind, prompt, str(path), as_json)


def _say(run: "Run", kind: str, prompt: str | None, output: str, as_json: bool) -> None:
    """What was written."""
    what = "lines" if kind == "jsonl" else "records"
    lines = 1 if prompt is not None else len(run) if kind == "jsonl" else run.counts()["records"]
    if as_json:
        holds: dict[str, Any] = {"prompt": prompt} if kind == "html" else {what: lines}
        click.echo(orjson.dumps({"file": output, "format": kind, "run": run.name, **holds}))
    else:
        click.echo(f"page: {output}" if kind == "html" else f"{lines:,} {what}: {output}", err=True)
