"""``raylens fit-lens``."""

import shlex
from typing import TYPE_CHECKING, Any

import click
import msgspec

from raylens.scheduler.cli._options import (
    Sectioned,
    cluster_options,
    corpus_options,
    given_actors,
    given_corpus,
    given_model,
    model_options,
)
from raylens.scheduler.cli._output import only_data, print_table

if TYPE_CHECKING:
    from raylens.workers.fitting.report import FitReport


_HEADINGS = {
    "model": "Model",
    "corpus_format": "Corpus",
    "output": "Lens and fit",
    "actors": "Actors and Ray",
    "as_json": "Output",
}


@click.command("fit-lens", cls=Sectioned, headings=_HEADINGS, context_settings={"show_default": True})
@click.argument("corpus", nargs=-1, required=True)
@model_options()
@corpus_options
@click.option("-o", "--output", required=True, metavar="LENS", help="Folder to create for the lens; must not exist yet.")
@click.option(
    "--kind",
    type=click.Choice(["tuned", "linear"]),
    default="tuned",
    help="tuned: least squares, then training on the KL; linear: least squares only.",
)
@click.option(
    "--tokens",
    type=int,
    default=1 << 16,
    help="Tokens to fit on; an eighth as many more are for validation, and an eighth are held out for the report.",
)
@click.option("--steps", type=int, help="Training steps, of one batch each; 64 by default, and 0 is least squares only.")
@click.option("--learning-rate", type=float, help="Learning rate of Adam at the first step; by default 0.05 / the model's width.")
@click.option("--batch-tokens", type=int, default=512, help="Tokens in one batch; longer prompts are cut to this.")
@click.option("--seed", type=int, default=0, help="Seed for splitting the prompts and for the order of the batches.")
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(**options: Any) -> None:
    """Fit a lens to a model on CORPUS, and print each layer's KL to the model's prediction before and after.

    CORPUS is as for raylens run. Use the lens with --lens of raylens run, lens and doctor (docs/LENSES.md).
    """
    from raylens.scheduler.fit import Actors, fit_with_progress
    from raylens.storage.paths import given_path
    from raylens.workers.fitting.settings import FitSettings

    settings = FitSettings(
        given_model(options),
        options["kind"],
        options["tokens"],
        options["steps"],
        options["learning_rate"],
        options["batch_tokens"],
        options["seed"],
    )
    corpus = given_corpus(options)
    actors = Actors(given_actors(options), options["gpus_per_actor"], options["ray"])
    with only_data():
        report = fit_with_progress(settings, corpus, given_path(options["output"], "--output"), actors, options["quiet"])
    if options["as_json"]:
        click.echo(msgspec.json.encode(report))
    else:
        _print(report, options["model"])


def _print(report: "FitReport", model: str) -> None:
    rows = [[one.tap, str(one.layer), f"{one.kl_before:z.4f}", f"{one.kl_after:z.4f}", one.chosen] for one in report.layers]
    print_table(["tap", "layer", "KL before", "KL after", "chosen"], rows)
    parts = ", ".join(f"{part.replace('_', ' ')} {count:,}" for part, count in report.tokens.items())
    skipped = f"; {report.prompts['skipped']:,} prompts skipped" if report.prompts["skipped"] else ""
    click.echo(f"tokens: {parts}{skipped}")
    click.echo(f"next: raylens run CORPUS --model {shlex.quote(model)} --lens {shlex.quote(report.lens)}", err=True)
