"""How far the runs of a store are, and whether anybody is at work on them; from files alone."""

import time
from typing import Any

import msgspec

from raylens.storage.durable import store_errors
from raylens.storage.layout import RunFolder
from raylens.storage.manifest import read_manifest
from raylens.storage.pulse import Pulse, read_pulse
from raylens.storage.quarantine import Quarantine
from raylens.storage.tally import Tally

#: Seconds over which the rate is taken.
RATE_SECONDS = 60.0
#: States of a run whose driver may be at work. What is written to others, such as by a compaction, is not new.
AT_WORK = ("running", "silent")


class Status(msgspec.Struct, frozen=True):
    """How far one run is, at one moment.

    Attributes:
        run, uid: the run's name, and the id that names its stream.
        state: ``complete``; ``running``; ``silent`` if nothing was heard of its driver for a minute; ``died`` if the driver's
            process is gone without having ended; ``stopped`` otherwise. The command that began the run resumes it.
        prompts, stored: how many prompts the corpus has, and how many of them are in the ledger.
        failures: how many of the stored prompts failed, by kind.
        tokens: of the stored prompts.
        prompts_per_second, tokens_per_second: the rate of the last minute of a run that is running or silent, 0 of others.
        seconds_left: to the end at that rate; None without a rate.
        seconds_since_commit: by file times; None before the first commit.
        quarantined: how many entries of the stream the writer refused.
        driver: what the driver last reported.
    """

    run: str
    uid: str
    state: str
    prompts: int
    stored: int
    failures: dict[str, int]
    tokens: int
    prompts_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    seconds_since_commit: float | None
    quarantined: int
    driver: Pulse | None

    @property
    def at_work(self) -> bool:
        """Whether its driver may be at work, and there is a rate."""
        return self.state in AT_WORK

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    def healthy(self, seconds: float) -> bool:
        """Whether the run is complete, or at work and has committed or begun within so many seconds."""
        if self.state == "complete":
            return True
        since = self.seconds_since_commit
        return self.state == "running" and since is not None and since <= seconds


def status(folder: RunFolder, tally: Tally | None = None) -> Status:
    """How far a run is.

    Args:
        tally: of the run, where it is asked for again and again: of its ledger only what is new is read then.

    Raises:
        StoreError: the run is damaged.
    """
    manifest, tally, now = read_manifest(folder), tally or Tally(folder), time.time()
    tally.follow()
    stored, pulse = tally.records + tally.failures.total(), read_pulse(folder)
    state = _state(pulse, now, complete=stored == manifest.prompts)
    prompts_rate, tokens_rate, since = _rates(tally, now)
    if state not in AT_WORK:
        prompts_rate = tokens_rate = 0.0
    left = (manifest.prompts - stored) / prompts_rate if prompts_rate and state == "running" else None
    return Status(
        run=folder.root.name,
        uid=manifest.uid,
        state=state,
        prompts=manifest.prompts,
        stored=stored,
        failures=dict(tally.failures.most_common()),
        tokens=tally.tokens,
        prompts_per_second=prompts_rate,
        tokens_per_second=tokens_rate,
        seconds_left=left,
        seconds_since_commit=since,
        quarantined=Quarantine(folder).count(),
        driver=pulse,
    )


def state_of(folder: RunFolder, *, complete: bool) -> str:
    """The state of a run as in ``Status``, where it is known whether all of it is stored."""
    return _state(read_pulse(folder), time.time(), complete=complete)


def _state(pulse: Pulse | None, now: float, *, complete: bool) -> str:
    return "complete" if complete else "stopped" if pulse is None else pulse.state(now)


def _rates(tally: Tally, now: float) -> tuple[float, float, float | None]:
    """Prompts and tokens a second in the last minute, or since a writer began if that is later; and the last commit's age."""
    since, elapsed, prompts, tokens = None, RATE_SECONDS, 0, 0
    for commit in reversed(tally.last):
        path = tally.ledger.path(commit.n)
        with store_errors(path):  # of a tally that is kept, the run may have been moved aside meanwhile
            age = max(now - path.stat().st_mtime, 0.0)
        since = age if since is None else since
        if age > RATE_SECONDS:
            break
        if not commit.prompts:  # a writer took the run over
            elapsed = age
            break
        prompts, tokens = prompts + commit.prompts, tokens + commit.tokens
    return (prompts / elapsed, tokens / elapsed, since) if elapsed and prompts else (0.0, 0.0, since)
