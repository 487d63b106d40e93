"""``raylens plot``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._bar import with_bar
from raylens.scheduler.cli._options import open_record, open_run, open_store, say, store_option
from raylens.storage.charts import KINDS as CHARTS
from raylens.storage.errors import NotDrawn, UsageError
from raylens.storage.plots import FORMATS, KINDS, write
from raylens.storage.positions import FORMS

if TYPE_CHECKING:
    from raylens.storage.plots.request import Request
    from raylens.storage.store import Run
    from raylens.storage.wanted import Wanted


@click.command("plot")
@click.argument("address", metavar="RUN[/PROMPT]")
@store_option
@click.option(
    "--kind",
    type=click.Choice([*KINDS, *CHARTS]),
    default="grid",
    show_default=True,
    help="Of a prompt, grid: positions by layers; rank: layers by rank; trajectory: tokens over layers; attribution: what each "
    "write adds to a logit. Of a whole run, aggregate: curves over layers; compare: what another run changes.",
)
@click.option(
    "--stat", help="What is shown: rank, prob, logprob, final_prob, final_logprob, entropy, kl, best or next, as the kind has it."
)
@click.option("--tap", help="The tap shown.")
@click.option(
    "--positions",
    help=f"{FORMS}. Those shown, by default the last 24 (grid) or the last one; those that an aggregate counts, all by default.",
)
@click.option("--layer-step", type=click.IntRange(min=1), help="Every Nth layer, counted from the last one down.")
@click.option(
    "--token",
    "tokens",
    multiple=True,
    metavar="TEXT|id:N|field:NAME",
    help="Token that a trajectory follows, may be repeated; whose rank, prob or logprob colours a grid; whose logit, less "
    "that of a second, an attribution takes apart.",
)
@click.option(
    "--important",
    type=click.IntRange(min=1),
    metavar="N",
    help="rank: only the N layers where the predicted token's rank changes most.",
)
@click.option(
    "--important-threshold",
    "threshold",
    type=click.FloatRange(min=0, max=100),
    metavar="PERCENT",
    help="rank: only layers with a token above it, LogitLens4LLMs's rule (which takes 3).",
)
@click.option(
    "--pages",
    is_flag=True,
    help="In pages: NAME-1.png, NAME-2.png and so on, or one PDF. A grid then shows all positions unless told, 24 a page; "
    "rank, trajectory and attribution one position a page.",
)
@click.option("--against", metavar="RUN", help="The run that compare holds against this one.")
@click.option("--by", metavar="KEY", help="Metadata key whose values an aggregate draws apart.")
@click.option("--font", type=click.Path(exists=True, dir_okay=False), help="Font file for glyphs that DejaVu Sans lacks.")
@click.option("--all", "every", is_flag=True, help="Every record of RUN, on all cores, into the folder --output.")
@click.option("--format", "suffix", type=click.Choice(FORMATS), help="Of the pictures of --all; png by default.")
@click.option("-o", "--output", required=True, metavar="PATH", help="Picture to write, .png, .svg or .pdf; with --all, a folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object that names the picture, or with --pages the pictures.")
def command(address: str, store: str, every: bool, output: str, as_json: bool, **options: Any) -> None:
    """Draw one prompt of a run, all of them, or the run as a whole, from the store alone."""
    from raylens.storage.plots.request import for_record

    run, prompt = open_run(store, address)
    kind = options["kind"]
    if kind in CHARTS:
        if prompt is not None:
            raise UsageError(f"--kind {kind} draws a whole run; {address!r} names a prompt: give the run alone")
        _refuse({**options, "every": every}, _OF_RECORDS, f"--kind {kind}")
        _plot_run(run, store, output, as_json, options)
        return
    _refuse(options, ("against", "by"), f"--kind {kind}")
    if kind != "rank":
        _refuse(options, ("important", "threshold"), f"--kind {kind}")
    else:
        _refuse(options, ("tokens",), "--kind rank")
    request, tokens = _request(run, options), _tokens(run, options)
    if every:
        if prompt is not None:
            raise UsageError(f"--all draws every record of a run; {address!r} names a prompt: give the run alone")
        _plot_all(run, request, tokens, output, as_json, options)
        return
    _refuse(options, ("suffix",), "one prompt, whose --output ends in .png, .svg or .pdf")
    _, record = open_record(store, address)
    request = for_record(request, record, options["positions"], tokens)
    paths = write(record, kind, output, request, vocabulary=run.vocabulary, font=options["font"])
    if as_json:
        files = {"files": [str(path) for path in paths]} if options["pages"] else {"file": str(paths[0])}
        click.echo(orjson.dumps({**files, "kind": kind, "run": run.name, "prompt": record.id}))
    else:
        click.echo("\n".join(map(str, paths)))


#: Options of pictures of records, which charts of whole runs do not take.
_OF_RECORDS = ("stat", "tap", "layer_step", "tokens", "important", "threshold", "pages", "every", "suffix")
#: Names of options that are not those of their parameters.
_NAMES = {
    "tokens": "token",
    "layer_step": "layer-step",
    "threshold": "important-threshold",
    "every": "all",
    "suffix": "format",
}


def _request(run: "Run", options: dict[str, Any]) -> "Request":
    from raylens.storage.plots.request import Request

    return Request(
        model=run.manifest.title,
        stat=options["stat"],
        tap=options["tap"],
        layer_step=options["layer_step"] or 1,
        important=options["important"],
        threshold=options["threshold"],
        pages=options["pages"],
    )


def _tokens(run: "Run", options: dict[str, Any]) -> "Wanted | None":
    from raylens.storage.wanted import wanted

    return wanted(options["tokens"], run) if options["tokens"] else None


def _refuse(options: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if options[name] not in (None, False, ()):
            raise UsageError(f"--{_NAMES.get(name, name)}: does not go with {what}; leave it out")


def _plot_run(run: "Run", store: str, output: str, as_json: bool, options: dict[str, Any]) -> None:
    from raylens.storage.charts import chart

    kind, against = options["kind"], options["against"]
    if (kind == "compare") != (against is not None):
        raise UsageError("--kind compare needs the other run, and only it does: --against RUN")
    other = None if against is None else open_store(store)[against]
    path = chart(run, output, other=other, by=options["by"], positions=options["positions"], font=options["font"])
    click.echo(orjson.dumps({"file": str(path), "kind": kind, "run": run.name}) if as_json else path)


def _plot_all(
    run: "Run", request: "Request", tokens: "Wanted | None", output: str, as_json: bool, options: dict[str, Any]
) -> None:
    from raylens.storage.plots.many import Job, plot_all

    job = Job(options["kind"], options["suffix"] or "png", request, Path(output), options["positions"], tokens, options["font"])
    total = sum(entry.failure is None for entry in run.entries)
    count, lacking = 0, 0
    first: NotDrawn | None = None
    for drawn in with_bar(plot_all(run, job), "drawing", total):
        if isinstance(drawn, NotDrawn):
            first, lacking = first or drawn, lacking + 1
        else:
            count += len(drawn)
    if first is not None and lacking == total:
        raise UsageError(f"none of the {total:,} prompts can be drawn: {first}")
    if as_json:
        click.echo(orjson.dumps({"folder": output, "kind": job.kind, "run": run.name, "pictures": count, "not_drawn": lacking}))
    else:
        click.echo(f"{count:,} pictures: {output}")
    if first is not None:
        say(f"raylens: {lacking:,} of {total:,} prompts are not drawn: {first}", err=True)
