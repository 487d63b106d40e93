"""``raylens export``."""

import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import open_record, open_run, store_option
from raylens.scheduler.cli._output import show_command, write_bytes
from raylens.storage.errors import UsageError
from raylens.storage.exports import FORMATS
from raylens.storage.positions import FORMS

if TYPE_CHECKING:
    from raylens.storage.record import Record
    from raylens.storage.run import Run

#: What a file's name says of what it is to hold.
_NAMED = {".parquet": "parquet", ".csv": "csv", ".html": "html", ".htm": "html"}


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
    to_stdout = output in {None, "-"}
    kind = kind or _NAMED.get(Path(output or "").suffix.lower(), "jsonl")
    if as_json and to_stdout:
        raise UsageError("--json: the records themselves go to stdout; give --output FILE")
    if kind == "html":
        _write_page(address, store, positions, output, as_json)
        return
    run, prompt = open_run(store, address)
    if prompt is not None and kind != "logitlens4llms":
        raise UsageError(f"{address!r} names a prompt; name a run, or use: {show_command(store, address, '--json')}")
    if positions is not None:
        raise UsageError(f"--positions: does not go with --format {kind}; leave it out")
    only = None if prompt is None else [open_record(store, address)[1]]
    _write(run, importlib.import_module(f"raylens.storage.exports.{kind.replace('-', '_')}"), kind, output, only)
    lines = len(only) if only is not None else len(run) if kind == "jsonl" else run.counts()["records"]
    what = "lines" if kind == "jsonl" else "records"
    if as_json:
        click.echo(orjson.dumps({"file": output, "format": kind, "run": run.name, what: lines}))
    elif not to_stdout:
        click.echo(f"{lines:,} {what}: {output}", err=True)


def _write(run: "Run", module: Any, kind: str, output: str | None, only: "list[Record] | None") -> None:
    files = getattr(module, "FILES", None)
    if files is None:
        write_bytes(output, partial(module.write, run))
        return
    if output in {None, "-"}:
        raise UsageError(f"--format {kind}: is {len(files)} files; give --output FOLDER")
    try:
        Path(str(output)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from error
    for name, write in files.items():
        write_bytes(str(Path(str(output)) / name), partial(write, run, records=only))


def _write_page(address: str, store: str, positions: str | None, output: str | None, as_json: bool) -> None:
    from raylens.storage.pages.page import record_page
    from raylens.storage.plots.request import positions_of

    run, record = open_record(store, address)
    page = record_page(run, record, None if positions is None else positions_of(record, positions))
    write_bytes(output, lambda file: file.write(page.encode()))
    if as_json:
        click.echo(orjson.dumps({"file": output, "format": "html", "run": run.name, "prompt": record.id}))
    elif output not in {None, "-"}:
        click.echo(f"page: {output}", err=True)
