"""``raylens show``."""

from typing import TYPE_CHECKING, Any

import click
import msgspec
import orjson

from raylens.scheduler.cli._options import open_run, store_option
from raylens.scheduler.cli._output import print_table, say, show_command
from raylens.storage.counted import counted
from raylens.storage.errors import UsageError
from raylens.storage.important import THRESHOLD
from raylens.storage.labels import label, text_label
from raylens.storage.taps import is_head

if TYPE_CHECKING:
    from raylens.storage.record import Record
    from raylens.storage.run import Run

#: Failures listed for people; --json lists all.
MAX_FAILURES = 20


@click.command("show")
@click.argument("address", metavar="RUN[/PROMPT]")
@store_option
@click.option("--position", type=int, help="Position to show; by default the last one lensed, or every step of a generated text.")
@click.option("--top", type=click.IntRange(1), help="Tokens to show for each tap; by default 1, or 5 at a generated step.")
@click.option(
    "--important-threshold",
    "threshold",
    type=click.FloatRange(min=0, max=100),
    metavar="PERCENT",
    help="Generated text: show only layers with a token above PERCENT, as LogitLens4LLMs does; 3 by default.",
)
@click.option("--quarantine", is_flag=True, help="List the entries of the run's stream that the writer refused.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, or with --quarantine a list.")
def command(
    address: str,
    store: str,
    position: int | None,
    top: int | None,
    threshold: float | None,
    quarantine: bool,
    as_json: bool,
) -> None:
    """Show a run's settings, counts and failures, or one prompt layer by layer (a generated text step by step).

    RUN may be the beginning of a run's name. PROMPT is a prompt's id, which may itself contain slashes.
    """
    from raylens.storage.record import Failure
    from raylens.storage.record_view import readable

    run, prompt = open_run(store, address)
    chosen = {"--position": position, "--top": top, "--important-threshold": threshold}
    option = next((f"{name} {value}" for name, value in chosen.items() if value is not None), None)
    if quarantine and prompt is not None:
        raise UsageError(f"--quarantine: applies to a run; name it as {run.name}")
    if prompt is None:
        if option is not None:
            raise UsageError(f"{option}: applies to a prompt; name one as {run.name}/PROMPT")
        show = _show_quarantine if quarantine else _show_run
        show(run, as_json)
        return
    if as_json and option is not None:
        raise UsageError(f"{option}: does not go with --json, which has all of the prompt")
    outcome = run[prompt]
    if as_json:
        click.echo(orjson.dumps(readable(outcome, run.vocabulary)))
    elif isinstance(outcome, Failure):
        say(f"prompt {text_label(outcome.id)} failed ({outcome.kind}): {text_label(outcome.message)}")
    elif outcome.generated is not None and position is None:
        _show_steps(run, outcome, top or 5, THRESHOLD if threshold is None else threshold)
    elif threshold is not None:
        raise UsageError("--important-threshold: applies to all steps of a generated text; leave it out here")
    else:
        _show_record(run, outcome, position, top or 1)


def _show_run(run: "Run", as_json: bool) -> None:
    from raylens.storage.quarantine import Quarantine

    counts = run.counts()
    if as_json:
        failures = [
            {"id": failure.id, "index": failure.index, "kind": failure.kind, "message": failure.message}
            for failure in run.failures()
        ]
        value = {**msgspec.to_builtins(run.manifest), "counts": counts, "certificate": run.certificate, "failures": failures}
        click.echo(orjson.dumps(value))
        return
    manifest = run.manifest
    edited = "of an edited model, " if manifest.edited else ""
    say(f"run {run.name}, {edited}made {manifest.created}, {'complete' if counts['complete'] else 'unfinished'}")
    say(f"model {manifest.sources.get('model', '?')}, corpus {manifest.sources.get('corpus', '?')}")
    failed = sum(counts["failures"].values())
    made = f"{counted(counts['records'], 'record')}, {counted(failed, 'failure')}"
    click.echo(f"{made}, of {counted(counts['prompts'], 'prompt')}; {counted(counts['tokens'], 'token')}")
    for section, values in manifest.identity.items():
        say(f"{section}: " + ", ".join(f"{name} {value}" for name, value in values.items() if value is not None))
    if run.certificate:
        _say_measured(run.certificate)
    if refused := Quarantine(run.folder).count():
        quarantined = show_command(run.folder.root.parents[1], run.name, "--quarantine")
        say(f"quarantine: {counted(refused, 'entry', 'entries')} refused; {quarantined} lists them")
    for number, failure in enumerate(run.failures()):
        if number == MAX_FAILURES:
            click.echo("more failures: --json lists all")
            break
        say(f"failed {text_label(failure.id)} ({failure.kind}): {text_label(failure.message)}")


def _say_measured(certificate: dict[str, Any]) -> None:
    """A line of each way in which actors read; what it does not say, as where another tool wrote it, is a question mark."""
    from raylens.storage.certificate import other_ways

    taps = certificate.get("run_taps")
    say(f"taps: {', '.join(map(str, taps)) if isinstance(taps, list) else '?'}; {_way(certificate)}")
    for other in other_ways(certificate):
        say(f"other actors, on {other.get('device')}: {_way(other)}")


def _way(certificate: dict[str, Any]) -> str:
    from raylens.storage.certificate import path_of

    lens = certificate.get("lens")
    error = lens.get("error") if isinstance(lens, dict) else None
    size = f"{error:.1e}" if isinstance(error, int | float) else "?"
    return f"last lens against the model's logits: {size}; {path_of(certificate)}"


def _show_quarantine(run: "Run", as_json: bool) -> None:
    refused = run.quarantine()
    if as_json:
        click.echo(orjson.dumps(msgspec.to_builtins(refused)))
        return
    if not refused:
        say("nothing was refused", err=True)
        return
    rows = [
        [one.entry, one.time or "?", "?" if one.index is None else str(one.index), f"{one.size:,}", text_label(one.reason)]
        for one in refused
    ]
    print_table(["entry", "refused", "prompt", "bytes", "reason"], rows)


def _show_steps(run: "Run", record: "Record", top: int, threshold: float) -> None:
    from raylens.storage.steps import lines

    assert record.generated is not None
    start, finish = record.generated.start, record.generated.finish
    why = "the sequence ended" if finish == "eos" else "the limit was reached"
    click.echo(f"prompt {text_label(record.id)}, {start} tokens, then {len(record.token_ids) - start} generated: {why}")
    click.echo(f"text: {text_label(record.text[-300:])}")
    for line in lines(record, run.vocabulary, top, threshold):
        click.echo(line)


def _show_record(run: "Run", record: "Record", position: int | None, top: int) -> None:
    from raylens.storage.record_view import heads_table, stats_table, table

    chosen = record.positions[-1] if position is None else position
    if chosen not in record.positions:
        raise UsageError(f"--position {chosen}: not lensed; it has positions {record.positions[0]} to {record.positions[-1]}")
    click.echo(
        f"prompt {text_label(record.id)}, {len(record.token_ids)} tokens, after position {chosen}: {label(record.tokens[chosen])}"
    )
    click.echo(f"text: {text_label(record.text[-300:])}")
    at = record.positions.index(chosen)
    print_table(*table(record, run.vocabulary, at, top))
    if any(map(is_head, record.taps)):
        click.echo()
        print_table(*heads_table(record, run.vocabulary, at, top))
    if any(lens.stats for lens in record.taps.values()):
        click.echo()
        print_table(*stats_table(record, run.vocabulary, at))
