"""``raylens plot``."""

import click
import orjson

from raylens.scheduler.cli._options import open_record, store_option
from raylens.storage.errors import UsageError
from raylens.storage.plots import KINDS, plot
from raylens.storage.record import Record


@click.command("plot")
@click.argument("address", metavar="RUN/PROMPT")
@store_option
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="grid",
    show_default=True,
    help="grid: positions by layers; rank: layers by rank; trajectory: tokens over layers.",
)
@click.option("--stat", help="What is shown: rank, prob, logprob, entropy or kl, as the kind has it.")
@click.option("--tap", help="The tap shown.")
@click.option("--positions", metavar="A:B", help="Positions shown; the last 24 (grid) or the last one by default.")
@click.option("--layer-step", type=click.IntRange(min=1), default=1, help="Every Nth layer, counted from the last one down.")
@click.option("--font", type=click.Path(exists=True, dir_okay=False), help="Font file for glyphs that DejaVu Sans lacks.")
@click.option("-o", "--output", required=True, metavar="FILE", help="Picture to write: .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object that names the picture.")
def command(
    address: str,
    store: str,
    kind: str,
    stat: str | None,
    tap: str | None,
    positions: str | None,
    layer_step: int,
    font: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Draw one prompt of a run, from the store alone."""
    run, record = open_record(store, address)
    chosen = None if positions is None else _positions(record, positions)
    model = str(run.manifest.sources["label"])
    path = plot(
        record, kind, output, vocabulary=run.vocabulary, model=model, stat=stat, tap=tap, positions=chosen, layer_step=layer_step,
        font=font,
    )  # fmt: skip
    if as_json:
        click.echo(orjson.dumps({"file": str(path), "kind": kind, "run": run.name, "prompt": record.id}))
    else:
        click.echo(path)


def _positions(record: Record, text: str) -> list[int]:
    first, colon, last = text.partition(":")
    try:
        part = (
            slice(int(first) if first else None, int(last) if last else None)
            if colon
            else slice(int(first), int(first) + 1 or None)
        )
    except ValueError:
        raise UsageError(f"--positions {text!r}: write A:B or one position") from None
    chosen = [position for position in range(len(record.token_ids))[part] if position in set(record.positions)]
    if not chosen:
        raise UsageError(
            f"--positions {text!r}: none of them was lensed; the record has {record.positions[0]} to {record.positions[-1]}"
        )
    return chosen
