"""``raylens status``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from click.core import ParameterSource

from raylens.scheduler.cli._options import one_store, open_store, store_option, typed
from raylens.scheduler.cli._output import print_table, say, show_command
from raylens.storage.counted import counted, failed
from raylens.storage.errors import RaylensError, StoreError, UsageError

if TYPE_CHECKING:
    from raylens.storage.server_status import ServerStatus
    from raylens.storage.status import Status


@click.command("status")
@click.argument("words", metavar="[STORE] [RUN]", nargs=-1)
@store_option
@click.option("--redis", metavar="URL", help="Also show what this server holds; without STORE, only that.")
@click.option(
    "--healthy-within",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Exit with code 1 unless every run is complete, or running and has committed in the last SECONDS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(words: tuple[str, ...], store: str, redis: str | None, healthy_within: float | None, as_json: bool) -> None:
    """Show how far the runs of STORE are, or everything about one RUN, from any terminal or machine.

    A word alone is the STORE, or where there is no such folder, a RUN of the default store.

    States: complete; running; silent (nothing heard of the driver for a minute); died (its process is gone); stopped. To
    resume a run, repeat the command that began it.
    """
    named = bool(words) or click.get_current_context().get_parameter_source("store") is not ParameterSource.DEFAULT
    of_server = redis is not None and not named
    if of_server and healthy_within is not None:
        raise UsageError("--healthy-within: give the STORE whose runs are meant")
    stores, runs = (words, ()) if len(words) == 1 and _is_store(words[0], store) else (words[:-1], words[-1:])
    store = one_store(stores, store)
    found, damaged = ([], []) if of_server else _statuses(store, runs)
    server = _server(redis, None if of_server else [one.uid for one in found])
    if as_json:
        value: dict[str, Any] = {"runs": [one.to_dict() for one in found]}
        click.echo(orjson.dumps(value | ({"server": server.to_dict()} if server is not None else {})))
    else:
        _print(found, store, bool(runs), server)
    if damaged:
        raise StoreError("; ".join(damaged))
    ill = [one.run for one in found if healthy_within is not None and not one.healthy(healthy_within)]
    if ill:
        raise RaylensError(
            f"neither complete, nor running with a commit in the last {healthy_within:g} seconds: {', '.join(ill)}"
        )


def _is_store(word: str, store: str) -> bool:
    """Whether a word alone is the store, and not a run of the store that --store or its default names."""
    return not typed("store") and ("/" in word or Path(word).exists() or not Path(store).exists())


def _statuses(store: str, runs: tuple[str, ...]) -> "tuple[list[Status], list[str]]":
    """Of these runs, or of each; and what is wrong with those that cannot be read, which do not hide the others."""
    from raylens.storage.status import status

    found, statuses, damaged = open_store(store), [], []
    for name in runs or found.names():
        try:
            statuses.append(status(found[name].folder))
        except StoreError as error:
            damaged.append(str(error))
    return statuses, damaged


def _server(url: str | None, uids: list[str] | None) -> "ServerStatus | None":
    if url is None:
        return None
    from raylens.storage.server_status import server_status

    return server_status(url, uids)


def _print(found: "list[Status]", store: str, whole: bool, server: "ServerStatus | None") -> None:
    if whole and found:
        for name, text in _lines(found[0], store):
            say(f"{name:<10} {text}")
    elif found:
        header = ["run", "state", "stored", "prompts", "failures", "prompts/s", "to go", "in flight"]
        print_table(header, [_cells(one) for one in found])
    if server is not None:
        limit = f" of {server.limit_bytes / 1e6:,.0f}" if server.limit_bytes else ""
        click.echo(f"{'server':<10} {server.used_bytes / 1e6:,.1f}{limit} MB in use")
        names = {one.uid: one.run for one in found}
        if server.streams is None:
            click.echo(
                "streams    not known: this user may not SCAN; name the store too, whose runs are then asked for one by one"
            )
        for uid, entries in (server.streams or {}).items():
            say(f"{'stream':<10} {counted(entries, 'entry', 'entries')} for the writer of {names.get(uid, uid)} to store")


def _cells(one: "Status") -> list[str]:
    in_flight = f"{one.driver.in_flight_bytes / 1e6:,.1f} MB" if one.driver is not None else ""
    numbers = [f"{number:,}" for number in (one.stored, one.prompts, sum(one.failures.values()))]
    return [one.run, one.state, *numbers, f"{one.prompts_per_second:,.1f}", _duration(one.seconds_left), in_flight]


def _lines(one: "Status", store: str) -> list[tuple[str, str]]:
    share = one.stored / one.prompts if one.prompts else 1.0
    lines = [
        ("run", f"{one.run}: {one.state}"),
        (
            "prompts",
            f"{one.stored:,} of {one.prompts:,} stored ({share:.0%}), {counted(one.tokens, 'token')}; {failed(one.failures)}",
        ),
    ]
    if one.at_work:
        left = _duration(one.seconds_left)
        lines.append(
            (
                "rate",
                f"{one.prompts_per_second:,.1f} prompts/s, {one.tokens_per_second:,.0f} tokens/s"
                + (f", {left} to go" if left else ""),
            )
        )
    if one.seconds_since_commit is not None:
        lines.append(("stored", f"last {_duration(one.seconds_since_commit)} ago"))
    if one.quarantined:
        lines.append(
            ("refused", f"{counted(one.quarantined, 'entry', 'entries')}; {show_command(store, one.run, '--quarantine')}")
        )
    pulse = one.driver
    if pulse is None:
        return lines
    heard = _duration(max(time.time() - pulse.at, 0))
    lines += [
        (
            "driver",
            f"process {pulse.pid} on {pulse.host}, last heard from {heard} ago; {pulse.ready} of {pulse.actors} actors up",
        ),
        (
            "in flight",
            f"{pulse.in_flight_bytes / 1e6:,.1f} MB, of which {pulse.unstored_bytes / 1e6:,.1f} MB "
            f"({pulse.unstored_prompts:,} prompts) wait for the writer",
        ),
    ]
    if pulse.deaths or pulse.resubmitted:
        lines.append(("mended", f"{pulse.deaths:,} actors died; {pulse.resubmitted:,} prompts submitted again"))
    if pulse.waiting:
        lines.append(("waiting", pulse.waiting))
    return lines


def _duration(seconds: float | None) -> str:
    from raylens.scheduler.progress import duration

    return "" if seconds is None else duration(seconds)
