"""``raylens export``."""

import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import open_run, store_option, write_bytes
from raylens.storage.errors import UsageError
from raylens.storage.exports import FORMATS

if TYPE_CHECKING:
    from raylens.storage.store import Run


@click.command("export")
@click.argument("address", metavar="RUN")
@store_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(FORMATS)),
    default="jsonl",
    show_default=True,
    help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + ".",
)
@click.option("-o", "--output", metavar="PATH", help="File or folder to write; stdout by default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object that names what was written; needs --output.")
def command(address: str, store: str, kind: str, output: str | None, as_json: bool) -> None:
    """Write the records of RUN for other tools, in corpus order; jsonl has the failures too.

    Every format and its fields: docs/EXPORTS.md.
    """
    run, prompt = open_run(store, address)
    if prompt is not None:
        raise UsageError(f"{address!r} names a prompt; name a run, or use: raylens show {address} --json")
    to_stdout = output in {None, "-"}
    if as_json and to_stdout:
        raise UsageError("--json: the records themselves go to stdout; give --output FILE")
    _write(run, importlib.import_module(f"raylens.storage.exports.{kind.replace('-', '_')}"), kind, output)
    lines = len(run) if kind == "jsonl" else run.counts()["records"]
    what = "lines" if kind == "jsonl" else "records"
    if as_json:
        click.echo(orjson.dumps({"file": output, "format": kind, "run": run.name, what: lines}))
    elif not to_stdout:
        click.echo(f"{lines:,} {what}: {output}", err=True)


def _write(run: "Run", module: Any, kind: str, output: str | None) -> None:
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
        write_bytes(str(Path(str(output)) / name), partial(write, run))
