"""``raylens plot``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._bar import with_bar
from raylens.scheduler.cli._options import open_record, open_run, open_store, store_option
from raylens.storage.charts import KINDS as CHARTS
from raylens.storage.errors import UsageError
from raylens.storage.plots import FORMATS, KINDS, plot

if TYPE_CHECKING:
    from raylens.storage.plots.request import Request
    from raylens.storage.store import Run


@click.command("plot")
@click.argument("address", metavar="RUN[/PROMPT]")
@store_option
@click.option(
    "--kind",
    type=click.Choice([*KINDS, *CHARTS]),
    default="grid",
    show_default=True,
    help="Of a prompt, grid: positions by layers; rank: layers by rank; trajectory: tokens over layers. Of a whole run, "
    "aggregate: curves over layers; compare: what another run changes.",
)
@click.option("--stat", help="What is shown: rank, prob, logprob, entropy or kl, as the kind has it.")
@click.option("--tap", help="The tap shown.")
@click.option("--positions", metavar="A:B", help="Positions shown; the last 24 (grid) or the last one by default.")
@click.option("--layer-step", type=click.IntRange(min=1), default=1, help="Every Nth layer, counted from the last one down.")
@click.option("--font", type=click.Path(exists=True, dir_okay=False), help="Font file for glyphs that DejaVu Sans lacks.")
@click.option("--token", "tokens", multiple=True, metavar="TEXT|id:N", help="Token that a trajectory follows; may be repeated.")
@click.option("--against", metavar="RUN", help="The run that compare holds against this one.")
@click.option("--by", metavar="KEY", help="Metadata key whose values an aggregate draws apart.")
@click.option("--all", "every", is_flag=True, help="Every record of RUN, on all cores, into the folder --output.")
@click.option(
    "--format", "suffix", type=click.Choice(FORMATS), default="png", show_default=True, help="Of the pictures of --all."
)
@click.option("-o", "--output", required=True, metavar="PATH", help="Picture to write, .png, .svg or .pdf; with --all, a folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object that names the picture.")
def command(address: str, store: str, every: bool, output: str, as_json: bool, **options: Any) -> None:
    """Draw one prompt of a run, all of them, or the run as a whole, from the store alone."""
    from raylens.storage.plots.request import Request, positions_of
    from raylens.storage.token_names import token_ids

    run, prompt = open_run(store, address)
    if options["kind"] in CHARTS:
        if prompt is not None:
            raise UsageError(f"--kind {options['kind']} draws a whole run; {address!r} names a prompt: give the run alone")
        _plot_run(run, store, output, as_json, options)
        return
    _refuse(options, ("against", "by"), f"--kind {options['kind']}")
    tokens = token_ids(options["tokens"], run.vocabulary) if options["tokens"] else None
    model = str(run.manifest.sources["label"])
    request = Request(model, options["stat"], options["tap"], layer_step=options["layer_step"], tokens=tokens)
    if every:
        if prompt is not None:
            raise UsageError(f"--all draws every record of a run; {address!r} names a prompt: give the run alone")
        _plot_all(run, request, output, as_json, options)
        return
    _, record = open_record(store, address)
    positions = None if options["positions"] is None else positions_of(record, options["positions"])
    path = plot(
        record,
        options["kind"],
        output,
        vocabulary=run.vocabulary,
        model=model,
        stat=request.stat,
        tap=request.tap,
        positions=positions,
        layer_step=request.layer_step,
        tokens=tokens,
        font=options["font"],
    )
    if as_json:
        click.echo(orjson.dumps({"file": str(path), "kind": options["kind"], "run": run.name, "prompt": record.id}))
    else:
        click.echo(path)


def _refuse(options: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if options[name]:
            raise UsageError(f"--{name.removesuffix('s') if name == 'tokens' else name}: does not go with {what}; leave it out")


def _plot_run(run: "Run", store: str, output: str, as_json: bool, options: dict[str, Any]) -> None:
    from raylens.storage.charts import chart

    kind, against = options["kind"], options["against"]
    _refuse(options, ("stat", "tap", "positions", "tokens"), f"--kind {kind}")
    if (kind == "compare") != (against is not None):
        raise UsageError("--kind compare needs the other run, and only it does: --against RUN")
    path = chart(
        run, output, other=None if against is None else open_store(store)[against], by=options["by"], font=options["font"]
    )
    click.echo(orjson.dumps({"file": str(path), "kind": kind, "run": run.name}) if as_json else path)


def _plot_all(run: "Run", request: "Request", output: str, as_json: bool, options: dict[str, Any]) -> None:
    from raylens.storage.plots.many import Job, plot_all

    job = Job(options["kind"], options["suffix"], request, Path(output), options["positions"], options["font"])
    total = sum(entry.failure is None for entry in run.entries)
    count = sum(1 for _ in with_bar(plot_all(run, job), "drawing", total))
    if as_json:
        click.echo(orjson.dumps({"folder": output, "kind": job.kind, "run": run.name, "pictures": count}))
    else:
        click.echo(f"{count:,} pictures: {output}")
