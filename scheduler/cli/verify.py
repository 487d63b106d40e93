"""``raylens verify``."""

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec
import orjson

from raylens.scheduler.cli._options import one_store, store_option
from raylens.scheduler.cli._output import print_table, say, show_command
from raylens.storage.counted import counted
from raylens.storage.errors import StoreError

if TYPE_CHECKING:
    from raylens.storage.findings import Findings
    from raylens.storage.layout import RunFolder

#: Leftovers listed for people; --json lists all.
MAX_LEFTOVERS = 10


@click.command("verify")
@click.argument("stores", metavar="[STORE]", nargs=-1)
@store_option
@click.option("--run", "name", help="Check only this run; by default all.")
@click.option("--repair", "mend", is_flag=True, help="Move damage aside, so that resuming the run computes only what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def command(stores: tuple[str, ...], store: str, name: str | None, mend: bool, as_json: bool) -> None:
    """Check every file, checksum and record of STORE against its ledger. Exit code 6 if anything is damaged.

    With --repair, damaged segments are moved to damaged/ in the run's folder, and every good record is kept; the same raylens
    run command then computes the rest. A run that is in progress is not touched.
    """
    from raylens.storage.repair import repair
    from raylens.storage.store import Store

    refused, found = [], []
    for folder in Store(one_store(stores, store)).folders(name):
        say(f"reading {folder.root.name}", err=True)
        if mend:
            try:
                for line in repair(folder):
                    say(f"{folder.root.name}/{line}", err=True)
            except StoreError as error:  # one run that cannot be mended does not hinder the others
                refused.append(str(error))
        found.append(_examined(folder))
    if as_json:
        click.echo(orjson.dumps(list(map(_value, found))))
    else:
        _print(found)
    for reason in refused:
        say(f"not repaired: {reason}", err=True)
    if refused or any(one.damage for one in found):
        sys.exit(StoreError.exit_code)


def _examined(folder: "RunFolder") -> "Findings":
    """What is found in a run; the error as its damage where something hinders reading on, so that the others are read too."""
    from raylens.storage.findings import Damage, Findings
    from raylens.storage.verify import examine

    try:
        return examine(folder)
    except StoreError as error:
        file, _, problem = str(error).removeprefix(f"{folder.root}/").partition(": ")
        return Findings(folder, damage=[Damage(file, f"{problem}; nothing else of the run was examined")])


def _value(found: "Findings") -> dict[str, Any]:
    return {
        "run": found.folder.root.name,
        "prompts": found.manifest.prompts if found.manifest is not None else None,
        "records": found.records,
        "failures": found.failures,
        "lost": found.lost,
        "commits": found.commits,
        "bytes": found.size,
        "quarantined": found.quarantined,
        "damage": msgspec.to_builtins(found.damage),
        "leftovers": found.leftovers,
    }


def _print(runs: "list[Findings]") -> None:
    header = ["run", "prompts", "records", "failures", "to do", "commits", "MB", "state"]
    print_table(header, list(map(_row, runs)))
    for found in runs:
        root = found.folder.root
        for damage in found.damage:
            say(f"damaged {root / damage.file}: {damage.problem}")
        for name in found.leftovers[:MAX_LEFTOVERS]:
            say(f"leftover {root / name}")
        if (more := len(found.leftovers) - MAX_LEFTOVERS) > 0:
            say(f"{more:,} more leftovers in {root}: --json lists all")
        if found.quarantined:
            listing = show_command(root.parents[1], root.name, "--quarantine")
            say(f"quarantine of {root.name}: {counted(found.quarantined, 'entry', 'entries')}; {listing}")


def _row(found: "Findings") -> list[str]:
    prompts = found.manifest.prompts if found.manifest is not None else None
    done = found.records + found.failures
    damaged = len(found.damage)
    state = f"damaged: {counted(damaged, 'file')}" if damaged else "good"
    numbers = [f"{number:,}" for number in (found.records, found.failures)]
    to_do = "?" if prompts is None else f"{prompts - done:,}"
    return [
        found.folder.root.name,
        "?" if prompts is None else f"{prompts:,}",
        *numbers,
        to_do,
        f"{found.commits:,}",
        f"{found.size / 1e6:,.1f}",
        state,
    ]
