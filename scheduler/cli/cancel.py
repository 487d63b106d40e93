"""``raylens cancel``."""

import time

import click

from raylens.scheduler.cli._options import one_store, open_store, store_option
from raylens.scheduler.cli._output import say
from raylens.storage.errors import StoreError

#: Seconds to wait for the driver to end: its writer stores what is published, and Ray ends its actors.
WAIT_SECONDS = 180.0


@click.command("cancel")
@click.argument("words", metavar="[STORE] RUN", nargs=-1, required=True)
@store_option
def command(words: tuple[str, ...], store: str) -> None:
    """Stop RUN as Ctrl-C would, on whichever machine its driver is.

    Results already published are stored. To resume later, repeat the command that began the run.
    """
    from raylens.storage.pulse import ask_to_stop, read_pulse

    *stores, run = words
    store = one_store(stores, store)
    one = open_store(store)[run]
    folder, pulse = one.folder, ask_to_stop(one.folder)
    say(f"asked process {pulse.pid} on {pulse.host} to stop; it stores what is published first", err=True)
    until = time.monotonic() + WAIT_SECONDS
    while (last := read_pulse(folder)) is not None and last.pid == pulse.pid and last.state(time.time()) != "died":
        if time.monotonic() > until:
            raise StoreError(f"{folder.root}: its driver has not stopped within {WAIT_SECONDS:.0f} seconds; see raylens status")
        time.sleep(0.2)
    counts = one.counts()
    stored = counts["records"] + sum(counts["failures"].values())
    say(f"{one.name}: stopped with {stored:,} of {counts['prompts']:,} prompts stored")
