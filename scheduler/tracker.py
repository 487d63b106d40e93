"""Where each prompt stands: pending, leased to an actor, produced by one, committed (docs/PROTOCOL.md).

Only the ledger says committed. Everything here is volatile: a new driver starts from the ledger alone. Knows no Ray.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raylens.scheduler.shards import Shard, estimated_tokens
from raylens.storage.errors import StoreError
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.record import Failure, Metadata, Prompt
from raylens.storage.stream import Stream
from raylens.workers.publish import Receipt

#: Bytes between submission and commit; beyond it nothing new is submitted.
OPEN_BYTES = 256 << 20
#: Bytes expected of a lensed position before it is known.
POSITION_BYTES = 4096
#: Seconds after which a receipt that is not in the ledger is checked against the stream, doubled each time its frames
#: are found there, up to the second number: the answer holds the frames, so asking costs as much as sending them.
RECEIPT_SECONDS = 3.0
MAX_RECEIPT_SECONDS = 24.0
#: Deaths of its actor after which a prompt is tried alone, and after which it is given up. Machines die too, so a
#: prompt is blamed only when it dies again and again with nothing else on the actor.
DEATHS_BEFORE_ALONE = 2
DEATHS_BEFORE_FAILURE = 4
#: Times a prompt's published frames may vanish (server lost, or frames refused) before it is given up.
MAX_VANISHED = 8


@dataclass(slots=True)
class _Open:
    """A prompt between submission and commit."""

    prompt: Prompt
    size: int
    deaths: int = 0
    vanished: int = 0
    entries: list[str] = field(default_factory=list)
    patience: float = 0.0
    check_at: float | None = None
    failure: Failure | None = None


class Tracker:
    """Hands out shards and follows them into the ledger.

    Args:
        fresh: shards of prompts that are not in the ledger.
        ledger: of the run, followed as it grows.
        stream: of the run, to check receipts against.
        give_up: publishes a failure and returns its receipt.
        all_positions: whether every position is lensed, for the estimate of bytes.

    Attributes:
        vanished: times that a prompt's published frames were found to be lost.
    """

    def __init__(
        self, fresh: Iterator[Shard], ledger: Ledger, stream: Stream, give_up: Callable[[Failure], Receipt], all_positions: bool
    ) -> None:
        self._fresh = fresh
        self._ledger = ledger
        self._stream = stream
        self._give_up = give_up
        self._all_positions = all_positions
        self._retry: deque[Shard] = deque()
        self._given_up: deque[_Open] = deque()  # whose failure is to be published
        self._open: dict[int, _Open] = {}
        self._bytes = 0
        self._exhausted = False
        self._checked = time.monotonic()
        self.vanished = 0

    @property
    def done(self) -> bool:
        """Whether every prompt of the corpus is in the ledger."""
        return self._exhausted and not self._open

    def unstored(self) -> tuple[int, int]:
        """Prompts that were published and are not in the ledger yet, and their bytes."""
        published = [state.size for state in self._open.values() if state.check_at is not None]
        return len(published), sum(published)

    def next_shard(self) -> Shard | None:
        """The next shard to submit: retries first, then fresh ones while the open bytes allow; None if there is none now."""
        while self._retry:
            shard = self._retry.popleft()
            prompts = [prompt for prompt in shard.prompts if prompt.index in self._open]
            if prompts:
                return Shard(prompts, shard.alone)
        while self._bytes < OPEN_BYTES:
            fresh = next(self._fresh, None)
            if fresh is None:
                self._exhausted = True
                return None
            # results of an earlier driver may have been committed since these prompts were read ahead
            prompts = [prompt for prompt in fresh.prompts if prompt.index not in self._ledger]
            for prompt in prompts:
                size = POSITION_BYTES * (estimated_tokens(prompt) if self._all_positions else 1)
                self._open[prompt.index] = _Open(prompt, size)
                self._bytes += size
            if prompts:
                return Shard(prompts, fresh.alone)
        return None

    def put_back(self, shard: Shard) -> None:
        """A shard that no actor can take yet."""
        self._retry.appendleft(shard)

    def produced(self, receipts: list[Receipt]) -> None:
        """An actor says it published these."""
        for receipt in receipts:
            if (prompt := self._open.get(receipt.index)) is not None:
                self._bytes += receipt.size - prompt.size
                prompt.size, prompt.entries, prompt.patience = receipt.size, receipt.entries, RECEIPT_SECONDS
                prompt.check_at = time.monotonic() + prompt.patience

    def lost(self, shard: Shard, blame: bool) -> None:
        """An actor did not answer for this shard; ``blame`` if it died while at work on it."""
        innocent: list[Prompt] = []
        suspects: list[Prompt] = []
        for prompt in shard.prompts:
            if (state := self._open.get(prompt.index)) is None:
                continue
            state.deaths += blame
            if state.deaths >= DEATHS_BEFORE_FAILURE:
                message = f"the actor died {state.deaths} times on this prompt, the last times on it alone"
                self._fail(state, "crash", message, prompt.metadata)
            else:
                (suspects if state.deaths >= DEATHS_BEFORE_ALONE else innocent).append(prompt)
        if innocent:
            self._retry.append(Shard(innocent, shard.alone))
        self._retry.extend(Shard([prompt], alone=True) for prompt in suspects)

    def follow(self) -> list[Commit]:
        """New commits of the ledger; their prompts are closed.

        Raises:
            StoreError: the ledger is damaged.
        """
        commits = self._ledger.refresh()
        for commit in commits:
            for entry in commit.entries:
                if (state := self._open.pop(entry.index, None)) is not None:
                    self._bytes -= state.size
        return commits

    def check_receipts(self) -> list[Commit]:
        """Resubmit prompts whose frames are neither in the stream nor in the ledger. Returns commits seen on the way.

        The stream is asked first and the ledger read after, so a commit in between is never taken for a loss.

        Raises:
            BrokerError: the server is away; call again.
            StoreError: results vanish however often they are sent.
        """
        self._publish_failures()
        now = time.monotonic()
        if now - self._checked < RECEIPT_SECONDS:
            return []
        self._checked = now
        old = [state for state in self._open.values() if state.check_at is not None and now >= state.check_at]
        asked = [entry for state in old for entry in state.entries]
        missing = self._stream.missing(asked) if asked else set()
        commits = self.follow()
        for state in old:
            if state.prompt.index not in self._open:
                continue
            if missing.intersection(state.entries):
                self._vanished(state)
            else:
                state.patience = min(2 * state.patience, MAX_RECEIPT_SECONDS)
                state.check_at = now + state.patience
        return commits

    def _vanished(self, state: _Open) -> None:
        state.vanished += 1
        self.vanished += 1
        state.check_at, state.entries = None, []
        if state.vanished >= 2 * MAX_VANISHED:
            raise StoreError(
                f"results vanish from the server before they are stored, again and again, last those of prompt "
                f"{state.prompt.id[:80]!r}; see the run's writer.log and quarantine"
            )
        if state.failure is not None:
            self._given_up.append(state)
        elif state.vanished >= MAX_VANISHED:
            # without metadata, in case it is this that the writer refuses
            self._fail(state, "delivery", f"its results vanished {state.vanished} times; see quarantine", {})
        else:
            self._retry.append(Shard([state.prompt], alone=state.deaths >= DEATHS_BEFORE_ALONE))

    def _fail(self, state: _Open, kind: str, message: str, metadata: Metadata) -> None:
        state.failure = Failure(state.prompt.id, state.prompt.index, kind, message, metadata)
        self._given_up.append(state)

    def _publish_failures(self) -> None:
        while self._given_up:
            state = self._given_up[0]
            if state.failure is not None and state.prompt.index in self._open:
                self.produced([self._give_up(state.failure)])
            self._given_up.popleft()
