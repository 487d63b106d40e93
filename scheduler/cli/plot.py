"""``raylens plot``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._bar import with_bar
from raylens.scheduler.cli._options import Sectioned, open_record, open_run, open_store, say, store_option
from raylens.storage.charts import KINDS as CHARTS
from raylens.storage.errors import NotDrawn, UsageError
from raylens.storage.plots import FORMATS, KINDS, write
from raylens.storage.positions import FORMS

if TYPE_CHECKING:
    from raylens.storage.plots.request import Request
    from raylens.storage.store import Run
    from raylens.storage.wanted import Wanted


_HEADINGS = {
    "store": "What to draw",
    "stat": "Pictures of a prompt",
    "against": "Pictures of a run",
    "font": "Output",
}


@click.command("plot", cls=Sectioned, headings=_HEADINGS)
@click.argument("address", metavar="RUN[/PROMPT]")
@store_option
@click.option(
    "--kind",
    type=click.Choice([*KINDS, *CHARTS]),
    default="grid",
    show_default=True,
    help="Of a prompt: grid (positions by layers), rank (layers by rank), trajectory (tokens over layers) or attribution (what "
    "each write adds to a logit). Of a run: aggregate (curves over layers) or compare (what another run changes).",
)
@click.option(
    "--positions",
    help=f"Positions to show: {FORMS}. By default the last one, in a grid the last 24; an aggregate counts all.",
)
@click.option(
    "--stat",
    help="Value to show. grid: rank, prob, logprob, final_prob, final_logprob, entropy or kl; trajectory: prob, logprob or "
    "rank; attribution: best or next.",
)
@click.option("--tap", help="Tap to show; by default resid_post, or in rank and attribution all.")
@click.option("--layer-step", type=click.IntRange(min=1), help="Show every Nth layer, counting down from the last.")
@click.option(
    "--token",
    "tokens",
    multiple=True,
    metavar="TEXT|id:N|field:NAME",
    help="trajectory: token to follow, repeatable; grid: token whose rank, prob or logprob colours the cells; attribution: "
    "token whose logit is explained, or with a second token their difference.",
)
@click.option(
    "--important",
    type=click.IntRange(min=1),
    metavar="N",
    help="rank: show only the N layers where the rank of the predicted token changes most.",
)
@click.option(
    "--important-threshold",
    "threshold",
    type=click.FloatRange(min=0, max=100),
    metavar="PERCENT",
    help="rank: show only layers with a token above PERCENT, as LogitLens4LLMs does with 3.",
)
@click.option(
    "--pages",
    is_flag=True,
    help="Break large pictures into pages: NAME-1.png, NAME-2.png, ..., or one PDF. A grid then has all positions by default, "
    "24 a page; the other kinds have one position a page.",
)
@click.option("--all", "every", is_flag=True, help="Draw every prompt of RUN, on all cores, into the folder --output.")
@click.option("--format", "suffix", type=click.Choice(FORMATS), help="Format of the pictures of --all; png by default.")
@click.option("--against", metavar="OTHER", help="compare: the other run.")
@click.option("--by", metavar="KEY", help="aggregate: metadata key by whose values to split the curves.")
@click.option("--font", type=click.Path(exists=True, dir_okay=False), help="Font file for characters that DejaVu Sans lacks.")
@click.option(
    "-o", "--output", required=True, metavar="PATH", help="Picture to write (.png, .svg or .pdf); with --all, a folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object that names what was drawn.")
def command(address: str, store: str, every: bool, output: str, as_json: bool, **options: Any) -> None:
    """Draw one prompt of a run, every prompt, or the run as a whole, without the model."""
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
