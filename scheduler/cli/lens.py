"""``raylens lens``."""

from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import (
    Sectioned,
    generation_options,
    given_generation,
    given_model,
    intervene_option,
    layers_option,
    lens_option,
    model_options,
)
from raylens.storage.errors import ModelError, UsageError, brief

if TYPE_CHECKING:
    from raylens.workers.settings import WorkerSettings

#: Stored of every tap, for whatever colours the grid.
_STATS = ("kl", "best_logprob", "best_rank")


_HEADINGS = {"model": "Model", "lens": "What is lensed", "generate": "Generation", "tap": "What is shown"}


@click.command("lens", cls=Sectioned, headings=_HEADINGS)
@click.argument("text")
@model_options()
@lens_option
@intervene_option
@layers_option
@click.option("-k", "--top-k", type=int, default=10, show_default=True, help="Tokens to keep at each place.")
@generation_options
@click.option("--tap", default="resid_post", show_default=True, help="Tap to show.")
@click.option(
    "--stat",
    default="rank",
    show_default=True,
    help="Value that colours the cells: rank, prob, logprob, entropy, kl, final_prob or final_logprob.",
)
@click.option(
    "--track", metavar="TOKEN", help="Colour by the rank, prob or logprob of this token: its text, such as ' Paris', or id:N."
)
@click.option(
    "--layer-step",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Show every Nth layer, counting down from the last.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the record, with every tap, as one JSON object.")
def command(
    text: str, top_k: int, tap: str, stat: str, track: str | None, layer_step: int, as_json: bool, **options: Any
) -> None:
    """Lens TEXT in this process and print the grid; needs no Ray, Redis or store.

    In a terminal, the grid is in colour and has the last positions that fit; in a pipe, it is plain and has all of them.
    """
    from rich.console import Console

    from raylens.storage.plots.grid import STATS, TOKEN_STATS, grid
    from raylens.storage.plots.request import Request
    from raylens.storage.record_view import readable
    from raylens.storage.terminal import grid_lines, legend
    from raylens.workers.api import check_text, loaded, read

    if stat not in STATS:
        raise UsageError(f"--stat {brief(stat)}: choose from {', '.join(STATS)}")
    if track is not None and stat not in TOKEN_STATS:
        raise UsageError(f"--track: {stat} does not depend on a token; use --stat {', '.join(TOKEN_STATS)}")
    shown = _shown_tap(tap, options["lens"])
    settings = _settings(shown, top_k, track, options)
    check_text(text)
    with Console(stderr=True).status("loading the model"):
        worker = loaded(settings)
        if reason := worker.certificate["refused"].get(shown):
            raise ModelError(f"--tap {tap}: {reason}; choose from {', '.join(worker.certificate['taps'])}")
        record = read(worker, text)
    if as_json:
        click.echo(orjson.dumps(readable(record, worker.vocabulary)))
        return
    request = Request(settings.model.source, stat, shown, record.positions, layer_step=layer_step, tokens=record.tracked or None)
    picture, console = grid(record, worker.vocabulary, request), Console(highlight=False)
    width = console.width if console.is_terminal else None
    for line in [*grid_lines(picture, width), *([] if width is None else [legend(picture.scale, width)])]:
        console.print(line, no_wrap=True, crop=False, overflow="ignore")


def _shown_tap(tap: str, lens: str) -> str:
    from raylens.storage.taps import TAPS, parse_taps
    from raylens.workers.lenses.source import lens_taps, parse_lens

    shown = parse_taps(tap, "--tap")
    if len(shown) != 1 or shown[0] not in TAPS:
        raise UsageError(f"--tap {tap}: name one of {', '.join(TAPS)}")
    lens_taps(parse_lens(lens), shown, "--tap")
    return shown[0]


def _settings(shown: str, top_k: int, track: str | None, options: dict[str, Any]) -> "WorkerSettings":
    from raylens.storage.taps import DEFAULT_TAPS
    from raylens.workers.interventions.edits import read_edits
    from raylens.workers.settings import LensSettings, WorkerSettings
    from raylens.workers.tracked import track_names

    generation = given_generation(options)
    lens = LensSettings(
        top_k,
        options["layers"],
        None if shown in DEFAULT_TAPS else (shown, "resid_post"),
        positions="all" if generation is None else "last",
        logprobs="float32",
        stats=_STATS,
        track=track_names(track if track is not None else ()),
        lens=options["lens"],
    )
    return WorkerSettings(given_model(options), lens, edits=read_edits(options["intervene"]), generation=generation)
