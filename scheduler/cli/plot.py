"""``raylens plot``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._bar import with_bar
from raylens.scheduler.cli._options import Sectioned, open_run, open_store, store_option
from raylens.scheduler.cli._output import say
from raylens.storage.charts import KINDS as CHARTS
from raylens.storage.errors import NotDrawn, UsageError
from raylens.storage.plots import FORMATS, KINDS
from raylens.storage.positions import FORMS

if TYPE_CHECKING:
    from raylens.storage.drawing import Choices
    from raylens.storage.run import Run


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
def command(
    address: str, store: str, every: bool, suffix: str | None, against: str | None, output: str, as_json: bool, **options: Any
) -> None:
    """Draw one prompt of a run, every prompt, or the run as a whole, without the model."""
    from raylens.storage.drawing import Choices, draw

    run, prompt = open_run(store, address)
    choices = Choices(**options, against=None if against is None else open_store(store)[against])
    choices.check()
    of_run = choices.kind in CHARTS
    if prompt is not None and (of_run or every):
        what = f"--kind {choices.kind} draws a whole run" if of_run else "--all draws every record of a run"
        raise UsageError(f"{what}; {address!r} names a prompt: give the run alone")
    for option, given in (("all", every), ("format", suffix)):
        if of_run and given:
            raise UsageError(f"--{option}: does not go with --kind {choices.kind}; leave it out")
    if every:
        _plot_all(run, choices, suffix or "png", output, as_json)
        return
    if suffix is not None:
        raise UsageError("--format: does not go with one prompt, whose --output ends in .png, .svg or .pdf; leave it out")
    if prompt is None and not of_run:
        raise UsageError(f"{address!r} names a run; name a prompt as {run.name}/PROMPT, or draw all of it by --kind aggregate")
    paths = draw(run, prompt, choices, output).paths
    if as_json:
        files = {"files": [str(path) for path in paths]} if choices.pages else {"file": str(paths[0])}
        named = {} if prompt is None else {"prompt": prompt}
        click.echo(orjson.dumps({**files, "kind": choices.kind, "run": run.name, **named}))
    else:
        click.echo("\n".join(map(str, paths)))


def _plot_all(run: "Run", choices: "Choices", suffix: str, output: str, as_json: bool) -> None:
    from raylens.storage.plots.many import Job, plot_all

    shown = choices.request(run), Path(output), choices.place(), choices.tokens(run), choices.font
    job = Job(choices.kind, suffix, *shown)
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
