"""``raylens fit-lens``."""

import contextlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from raylens.scheduler.cli._options import CORPUS_FORMATS, model_options, model_settings, print_table

if TYPE_CHECKING:
    from raylens.workers.fitting.report import FitReport


@click.command("fit-lens", context_settings={"show_default": True})
@click.argument("corpus", nargs=-1, required=True)
@model_options
@click.option("-o", "--output", required=True, metavar="LENS", help="Folder for the lens, which must not be there yet.")
@click.option(
    "--kind",
    type=click.Choice(["tuned", "linear"]),
    default="tuned",
    help="tuned: least squares, then trained on the KL; linear: least squares only.",
)
@click.option("--tokens", type=int, default=1 << 16, help="To fit on; an eighth is validated on, and an eighth held out.")
@click.option("--steps", type=int, help="Of training, one batch each; 64 by default, and 0 leaves it at least squares.")
@click.option("--learning-rate", type=float, help="Of Adam at the first step; 0.05 / width of the model by default.")
@click.option("--batch-tokens", type=int, default=512, help="Tokens of one batch; longer prompts are cut to it.")
@click.option("--seed", type=int, default=0, help="Of the split of the prompts and the order of the batches.")
@click.option("--format", "kind_of_corpus", type=click.Choice(CORPUS_FORMATS), default="auto", help="Of the corpus.")
@click.option("--column", help="Key or column of the text.")
@click.option("--id-column", help="Key or column of the id.")
@click.option("--limit", type=int, help="Stop after this many prompts.")
@click.option("--actors", type=int, help="Number of actors, which share the layers; one a GPU share, or one a node by default.")
@click.option("--gpus-per-actor", type=float, default=1.0, help="GPUs of one actor, or a fraction.")
@click.option("--ray", default="auto", help="local, an address, or auto: RAY_ADDRESS if set, else local.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(**options: Any) -> None:
    """Fit a lens to a model on CORPUS, and say how far each layer is from the model's prediction before and after.

    CORPUS is what raylens run takes. The lens is for --lens of raylens run, lens and doctor (docs/LENSES.md).
    """
    from raylens.scheduler.corpus import Corpus, CorpusSettings
    from raylens.scheduler.fit import Actors, fit_with_progress
    from raylens.storage.paths import given_path
    from raylens.workers.fitting.settings import FitSettings

    settings = FitSettings(
        model_settings(options),
        options["kind"],
        options["tokens"],
        options["steps"],
        options["learning_rate"],
        options["batch_tokens"],
        options["seed"],
    )
    corpus = Corpus(
        CorpusSettings(
            sources=options["corpus"],
            format=options["kind_of_corpus"],
            column=options["column"],
            id_column=options["id_column"],
            limit=options["limit"],
        )
    )
    actors = Actors(options["actors"], options["gpus_per_actor"], options["ray"])
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints notices to stdout, where only our data belongs
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
