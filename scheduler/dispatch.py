"""The loop of a run: feed the actors, follow the ledger, mend what breaks."""

import time
from collections.abc import Callable

from raylens.scheduler.broker import Broker
from raylens.scheduler.external_writer import ExternalWriter
from raylens.scheduler.heartbeat import Heartbeat
from raylens.scheduler.placing import Placing
from raylens.scheduler.pool import Done, Event, LoadDeath, Loaded, Lost, Pool
from raylens.scheduler.progress import Progress
from raylens.scheduler.run_metrics import RunMetrics
from raylens.scheduler.tracker import Tracker
from raylens.scheduler.writer_process import WriterProcess
from raylens.storage.counted import counted
from raylens.storage.errors import BrokerError, ServerFull
from raylens.storage.ledger import Commit

#: Seconds to wait for an actor before looking at everything else.
POLL_SECONDS = 0.2
#: Seconds without a commit after which the user is told what the run waits for, again and again.
STANDSTILL_SECONDS = 10.0
#: Seconds without an answer of any actor after which the user is told what they are at, again and again.
QUIET_SECONDS = 60.0
#: Actors of which that is told: one that hangs while others work is told once they have nothing more to do.
QUIET_ACTORS = 3
#: Seconds between two looks at how many actors the cluster has room for.
GROW_SECONDS = 5.0
#: Times in a row that each actor may find the server away, after waiting for it, before the run is given up.
MAX_BROKER_LOSSES = 3


class Dispatch:
    """Runs every prompt of a tracker through a pool until the ledger holds them all.

    Args:
        pool, tracker, writer, broker: the parts of the run.
        progress: told of every commit.
        heartbeat, metrics: tell those outside what the run is at.
        loaded: told the certificate of each actor that loads the model.
        stopping: whether the user wants to stop.
        room: how many actors the cluster has room for; None where the user said how many there are to be.
    """

    def __init__(
        self,
        pool: Pool,
        tracker: Tracker,
        writer: WriterProcess | ExternalWriter,
        broker: Broker,
        progress: Progress,
        heartbeat: Heartbeat,
        metrics: RunMetrics,
        loaded: Callable[[dict[str, object]], None],
        stopping: Callable[[], bool],
        room: Callable[[], int] | None = None,
    ) -> None:
        self._pool = pool
        self._tracker = tracker
        self._writer = writer
        self._broker = broker
        self._progress = progress
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._loaded = loaded
        self._stopping = stopping
        self._room = room
        self._broker_losses = 0
        self._placing = Placing(self._wait)
        self._moved = self._grown = self._heard = time.monotonic()
        self._told_away = False
        self._resubmitted = 0
        self._waiting = ""

    def run(self) -> None:
        """Until the run is complete or the user stops it.

        Raises:
            RaylensError: the run cannot go on.
        """
        while not self._stopping():
            self._feed()
            if self._tracker.done:
                return
            for event in self._pool.poll(POLL_SECONDS):
                self._heard = time.monotonic()
                self._handle(event)
            self._look_after()

    def _feed(self) -> None:
        while self._pool.room() and (shard := self._tracker.next_shard()) is not None:
            if not self._pool.submit(shard):  # a suspect waits until an actor is free of everything else
                self._tracker.put_back(shard)
                return

    def _handle(self, event: Event) -> None:
        match event:
            case Loaded(certificate):
                self._loaded(certificate)
                self._progress.working()
            case LoadDeath(reason):
                self._wait(f"an actor died while it loaded the model ({reason}); it is started again")
            case Done(receipts):
                self._broker_losses = 0
                self._tracker.produced(receipts)
            case Lost(shard, reason, blame, broker):
                if reason:
                    self._wait(f"{reason}; resubmitting {counted(len(shard.prompts), 'prompt')}")
                self._resubmitted += len(shard.prompts)
                self._broker_losses += broker
                if self._broker_losses > MAX_BROKER_LOSSES * self._pool.size:
                    raise BrokerError("the actors cannot reach the server; is it up, and reachable from their machines?")
                self._tracker.lost(shard, blame)

    def _look_after(self) -> None:
        self._check_placed()
        self._grow()
        self._broker.watch()
        self._writer.ensure_alive()
        self._tell(self._tracker.follow())
        vanished = self._tracker.vanished
        self._ask_server()
        if lost := self._tracker.vanished - vanished:
            self._wait(f"results vanished from the server; resubmitting {counted(lost, 'prompt')}")
        self._progress.in_flight(self._tracker.open_bytes)
        self._tell_waiting()
        self._tell_quiet()
        if self._heartbeat.due():
            self._beat()

    def _grow(self) -> None:
        """Take what nodes have joined the cluster; actors of those that leave are placed again by Ray, on others or these."""
        if self._room is None or time.monotonic() - self._grown < GROW_SECONDS:
            return
        self._grown = time.monotonic()
        if started := self._pool.grow(self._room()):
            self._progress.waiting(f"the cluster has grown: loading the model in {counted(started, 'more actor')}")

    def _beat(self) -> None:
        prompts, size = self._tracker.unstored()
        figures = {
            "actors": self._pool.size,
            "ready": self._pool.ready,
            "deaths": self._pool.deaths,
            "resubmitted": self._resubmitted + self._tracker.vanished,
            "in_flight_bytes": self._tracker.open_bytes,
            "unstored_prompts": prompts,
            "unstored_bytes": size,
        }
        self._heartbeat.beat(self._waiting, **figures)
        self._metrics.set(**figures)

    def _wait(self, text: str) -> None:
        self._waiting = text
        self._progress.waiting(text)

    def _ask_server(self) -> None:
        if self._broker.away:  # no answer is waited for a second time
            self._tell_away(self._broker.away)
            return
        try:
            self._tell(self._tracker.check_receipts())
            self._tracker.publish_failures()
            self._told_away = False
        except ServerFull:  # told when the run stands still
            pass
        except BrokerError as error:
            self._tell_away(str(error))

    def _tell_away(self, reason: str) -> None:
        if not self._told_away:  # once an outage, not once a try
            self._wait(f"server away: {reason}")
        self._told_away = True

    def _tell_waiting(self) -> None:
        now = time.monotonic()
        if now - self._moved < STANDSTILL_SECONDS:
            return
        self._moved = now
        prompts, size = self._tracker.unstored()
        if self._broker.full():
            self._wait(f"the server is full; actors wait until the writer has made room{self._writer.remedy}")
        elif prompts:
            self._writer.ask_again()
            waiting = f"waiting for the writer to store {counted(prompts, 'published prompt')}, {size / 1e6:,.1f} MB"
            self._wait(f"{waiting}{self._writer.remedy}")
        elif self._pool.deaths and not self._pool.ready:
            self._wait("no actor is ready; Ray starts them again on nodes that have room, or that join")

    def _tell_quiet(self) -> None:
        """A batch may take its time, and a prompt may hang its actor for ever: the user knows which is likely."""
        now, shards = time.monotonic(), self._pool.at_work
        if not shards or self._broker.away:
            self._heard = now
        if now - self._heard < QUIET_SECONDS:
            return
        self._heard = now
        if self._broker.full():  # which is told, and they wait for
            return
        named = ", ".join(repr(shard.prompts[0].id[:80]) for shard in shards[:QUIET_ACTORS])
        more = f" and {len(shards) - QUIET_ACTORS} more" if len(shards) > QUIET_ACTORS else ""
        self._wait(
            f"no actor has answered for {QUIET_SECONDS:.0f} s; they are working on the shards that begin with {named}{more}"
        )

    def _check_placed(self) -> None:
        if not self._pool.placed:
            self._placing.check("no actor has started;")
            return
        if self._placing.told and not self._pool.ready:
            self._wait("an actor has started and is loading the model")
        self._placing.told = False

    def _tell(self, commits: list[Commit]) -> None:
        for commit in commits:
            self._metrics.committed(commit)
            if commit.entries:
                self._moved, self._waiting = time.monotonic(), ""
                self._writer.committed()
                failed = [(entry.id, entry.failure) for entry in commit.entries if entry.failure is not None]
                for prompt, kind in failed:
                    self._progress.prompt_failed(prompt, kind)
                failures = len(failed)
                self._progress.committed(len(commit.entries) - failures, failures, sum(entry.tokens for entry in commit.entries))
