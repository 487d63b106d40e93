"""``raylens run``."""

import shlex
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from raylens.scheduler.cli._config import load_config, read_text
from raylens.scheduler.cli._options import (
    DEFAULT_STORE,
    Sectioned,
    cluster_options,
    corpus_options,
    generation_options,
    given_actors,
    given_corpus,
    given_generation,
    given_model,
    intervene_option,
    layers_option,
    lens_option,
    model_options,
)
from raylens.scheduler.cli._output import only_data, say, show_command
from raylens.scheduler.cli._running import run_from_command
from raylens.scheduler.stopping import NotBegun
from raylens.storage.counted import counted, failed
from raylens.storage.errors import EXIT_FAILED_PROMPTS, EXIT_STOPPED
from raylens.storage.positions import FORMS

if TYPE_CHECKING:
    from raylens.scheduler.run import RunResult


_HEADINGS = {
    "model": "Model",
    "text": "Corpus",
    "lens": "What is lensed",
    "stats": "Statistics",
    "generate": "Generation",
    "actors": "Actors, Ray and Redis",
    "store": "Store and run",
    "as_json": "Output and configuration",
}


@click.command("run", cls=Sectioned, headings=_HEADINGS, context_settings={"show_default": True})
@click.argument("corpus", nargs=-1)
@model_options()
@click.option("--text", multiple=True, help="Prompt given on the command line; repeatable.")
@corpus_options
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False),
    help="Jinja file for prompts with messages, in place of the model's own template.",
)
@click.option("--max-tokens", type=int, help="Longest prompt allowed, in tokens; by default the model's limit.")
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "skip", "error"]),
    default="error",
    help="What to do with a longer prompt: cut off its end, skip it, or count it as failed.",
)
@lens_option
@intervene_option
@layers_option
@click.option(
    "--taps",
    help="Taps to lens, separated by commas: resid_pre (of layer 0 only), attn_out, resid_mid, mlp_out, resid_post; "
    "by default the last four.",
)
@click.option("--heads", metavar="LAYERS", help="Also lens each attention head of these layers, as taps head_0, head_1, ...")
@click.option("--positions", default="last", help=f"Positions to lens: {FORMS}.")
@click.option("-k", "--top-k", type=int, default=10, help="Tokens to keep at each place (a position, tap and layer).")
@click.option(
    "--logprobs",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    help="Precision of the stored logprobs; float32 also reads each tap by itself, within 1e-4.",
)
@click.option(
    "--stats",
    help="Statistics to store at each place, separated by commas: kl (KL to the final distribution), next_logprob, next_rank "
    "(of the prompt's next token), best_logprob, best_rank (of the final prediction), all of these, or none. Unless none, "
    "resid_post has them all if all its layers are lensed. Also attribution (to the logits of tracked tokens), "
    "next_attribution, best_attribution (docs/ATTRIBUTION.md).",
)
@click.option(
    "--track",
    multiple=True,
    metavar="TOKEN",
    help="Token whose rank and logprob to store at each place: its text, such as ' Paris', or id:N, or field:NAME for "
    "the token that each prompt's field NAME holds; repeatable.",
)
@generation_options
@click.option("--samples", type=int, default=1, help="Texts to generate for each prompt, stored as ID#1, ID#2, ...")
@cluster_options
@click.option(
    "--batch-tokens",
    type=int,
    help="Tokens in one batch, generated ones included; by default 512 on CPUs and 4,096 on GPUs, 8 times that with --generate.",
)
@click.option("--redis", default="embedded", help="URL of a Redis or Valkey server, or embedded to start one.")
@click.option(
    "--writer",
    type=click.Choice(["own", "external"]),
    default="own",
    help="What stores the results: own is a process of this command, external a raylens writer on the store's machine.",
)
@click.option(
    "--writer-helpers",
    type=int,
    help="Maximum number of processes that help the writer when results outpace it; by default a quarter of the cores.",
)
@click.option(
    "-s", "-o", "--store", default=DEFAULT_STORE, envvar="RAYLENS_STORE", help="Folder that holds the runs; created if missing."
)
@click.option("--name", help="Name of the run; by default made from the model and the corpus.")
@click.option(
    "--fresh", is_flag=True, allow_from_autoenv=False, help="Start over; an earlier run of this name is kept as NAME.old-1."
)
@click.option("--dry-run", is_flag=True, help="Lens a sample, print what the whole run would take, and stop.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print events to stdout as JSON lines; with --dry-run or --show-config, the answer as JSON.",
)
@click.option("--quiet", is_flag=True, help="Show neither progress nor summary.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=load_config,
    help="TOML file with options of this command, such as top-k = 5.",
)
@click.option("--show-config", is_flag=True, help="Print each option's value and where it comes from, and stop.")
@click.pass_context
def command(context: click.Context, /, show_config: bool, **options: Any) -> None:
    """Lens every prompt of CORPUS into a store. Repeat the same command to resume a run that was stopped.

    CORPUS is any number of files or globs: JSON lines, CSV, Parquet or plain text, also as .gz or .zst; - is stdin.
    """
    if show_config:
        from raylens.scheduler.cli import _show_config

        _show_config.show_config(context, as_json=options["as_json"])
        return
    corpus, settings = given_corpus(options), _settings(options)
    if options["dry_run"]:
        _dry_run(settings, corpus, options["as_json"], options["quiet"])
        return
    try:
        outcome = run_from_command(settings, corpus, as_json=options["as_json"], quiet=options["quiet"])
    except KeyboardInterrupt as stopped:
        _say_how_to_resume(options["redis"], begun=not isinstance(stopped, NotBegun))
        sys.exit(EXIT_STOPPED)
    failed = _summary(options["store"], outcome, options["as_json"], options["quiet"])
    if not outcome.complete:
        _say_how_to_resume(options["redis"])
        sys.exit(EXIT_STOPPED)
    if failed:
        sys.exit(EXIT_FAILED_PROMPTS)


def _settings(options: dict[str, Any]) -> Any:
    from raylens.scheduler.settings import RunSettings
    from raylens.storage.paths import given_path
    from raylens.storage.taps import parse_taps
    from raylens.workers.interventions.edits import read_edits
    from raylens.workers.metrics import parse_stats
    from raylens.workers.settings import InputSettings, LensSettings, WorkerSettings

    template = read_text("--chat-template", options["chat_template"]) if options["chat_template"] is not None else None
    worker = WorkerSettings(
        given_model(options),
        LensSettings(
            options["top_k"],
            options["layers"],
            parse_taps(options["taps"]) if options["taps"] is not None else None,
            options["positions"],
            options["logprobs"],
            parse_stats(options["stats"]) if options["stats"] is not None else None,
            options["track"],
            options["lens"],
            heads=options["heads"],
        ),
        InputSettings(template, options["max_tokens"], options["on_long"], options["batch_tokens"]),
        read_edits(options["intervene"]),
        given_generation(options),
    )
    return RunSettings(
        worker=worker,
        store=given_path(options["store"], "--store"),
        name=options["name"],
        actors=given_actors(options),
        gpus_per_actor=options["gpus_per_actor"],
        ray=options["ray"],
        redis=options["redis"],
        writer=options["writer"],
        writer_helpers=options["writer_helpers"],
        fresh=options["fresh"],
        intervention=options["intervene"],
    )


def _summary(store: str, ended: "RunResult", as_json: bool, quiet: bool) -> int:
    """Say what the run came to and what to do next; the number of failed prompts that count as such."""
    from raylens.scheduler.events import event_line
    from raylens.storage.quarantine import Quarantine
    from raylens.storage.store import Store

    name = ended.run
    run = Store(store)[name]
    counts = run.counts()
    quarantined = Quarantine(run.folder).count()
    if as_json:
        event = "done" if ended.complete else "stopped"
        click.echo(event_line(event, run=name, store=store, **counts, quarantined=quarantined))
    elif not quiet:
        words = [counted(counts["records"], "record"), failed(counts["failures"]), counted(counts["tokens"], "token")]
        if quarantined:
            words.append(f"{quarantined:,} in quarantine")
        say(f"{name}: {', '.join(words)}")
        click.echo(f"next: {show_command(store, name)}", err=True)
    return sum(number for kind, number in counts["failures"].items() if kind != "skipped")


def _dry_run(settings: Any, corpus: Any, as_json: bool, quiet: bool) -> None:
    import orjson

    from raylens.scheduler.dry_run.estimate import estimate
    from raylens.scheduler.progress import choose
    from raylens.scheduler.stopping import Stopping

    progress = choose(quiet=quiet)  # stdout is for the estimate
    with Stopping() as stopping, only_data(), closing(progress):
        found = estimate(settings, corpus, progress, stopping)
    click.echo(orjson.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


def _say_how_to_resume(redis: str, begun: bool = True) -> None:
    from raylens.storage.urls import redact  # without redis, which the interrupt may have left half imported

    again = [argument for argument in sys.argv[1:] if argument != "--fresh" or not begun]
    words = [word.replace(redis, redact(redis)) for word in again]  # a log must not get the password
    click.echo(f"stopped; what is stored stays. To resume: {shlex.join(['raylens', *words])}", err=True)
