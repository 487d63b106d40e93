"""``raylens compact``."""

import click
import orjson

from raylens.scheduler.cli._bar import with_bar
from raylens.scheduler.cli._options import open_run, store_option
from raylens.scheduler.cli._output import say
from raylens.scheduler.printable import printable
from raylens.storage.errors import UsageError


@click.command("compact")
@click.argument("address", metavar="RUN")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str, store: str, as_json: bool) -> None:
    """Merge the small segments of RUN, and their tables, into segments of about 32 MiB.

    Readers see no change, and raylens run can still resume the run. If compact is killed, repeat it to finish. A run that is
    in progress is refused.
    """
    from raylens.storage.compaction import compact

    run, prompt = open_run(store, address)
    if prompt is not None:
        raise UsageError(f"{address!r} names a prompt; runs are compacted: {run.name}")
    before, after = compact(run.folder, lambda groups: with_bar(groups, printable(f"compacting {run.name}"), len(groups)))
    if as_json:
        click.echo(orjson.dumps({"run": run.name, "segments_before": before, "segments": after}))
    else:
        say(f"{run.name}: {before:,} segments, now {after:,}")
