"""Where each prompt stands: pending, leased to an actor, produced by one, committed (docs/PROTOCOL.md).

Only the ledger says committed. Everything here is volatile: a new driver starts from the ledger alone. Knows no Ray.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raylens.scheduler.shards import Shard
from raylens.storage.errors import StoreError
from raylens.storage.ledger import Commit, Ledger
from raylens.storage.record import Failure, Metadata, Prompt
from raylens.storage.stream import Stream
from raylens.workers.publish import Receipt

#: Bytes between submission and commit; what would exceed it is not submitted yet.
OPEN_BYTES = 256 << 20
#: Of a server's memory limit, this part is for what is open; the rest is for what was published twice, and for others.
OPEN_SHARE = 4
#: Bytes expected of a lensed position at least; receipts tell when it is more.
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


def open_bytes(server_limit: int) -> int:
    """How many bytes may be open with a server that may hold so many; 0 is no limit."""
    return min(OPEN_BYTES, server_limit // OPEN_SHARE) if server_limit else OPEN_BYTES


@dataclass(slots=True)
class _Open:
    """A prompt between submission and commit, at first in shard ``shard``. ``size`` is expected, then known from its receipt."""

    prompt: Prompt
    size: int
    shard: int
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
        prompts: of the run, with those that are.
        ledger: of the run, followed as it grows.
        stream: of the run, to check receipts against.
        give_up: publishes a failure and returns its receipt.
        positions: about how many positions of a prompt are lensed, for the estimate of bytes.
        most: bytes that may be open, as expected before receipts tell; a shard that exceeds it by itself goes alone.

    Attributes:
        open_bytes: between submission and commit, as far as they are known.
        vanished: times that a prompt's published frames were found to be lost.
    """

    def __init__(
        self,
        fresh: Iterator[Shard],
        prompts: int,
        ledger: Ledger,
        stream: Stream,
        give_up: Callable[[Failure], Receipt],
        positions: Callable[[Prompt], int],
        most: int = OPEN_BYTES,
    ) -> None:
        self._fresh = fresh
        self._prompts = prompts
        self._ledger = ledger
        self._stream = stream
        self._give_up = give_up
        self._positions = positions
        self._most = most
        self._next: Shard | None = None  # read ahead, and too much for now
        self._retry: deque[Shard] = deque()
        self._given_up: deque[_Open] = deque()  # whose failure is to be published
        self._open: dict[int, _Open] = {}
        self.open_bytes = 0
        self._published_bytes = self._published_positions = 0
        self._shards = 0  # handed out
        self._checked = -math.inf
        self.vanished = 0

    @property
    def done(self) -> bool:
        """Whether every prompt of the corpus is in the ledger."""
        return self._ledger.count == self._prompts

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
        while (fresh := self._next or next(self._fresh, None)) is not None:
            # results of an earlier driver may have been committed since these prompts were read ahead
            prompts = [prompt for prompt in fresh.prompts if prompt.index not in self._ledger]
            sizes = [self._expected(prompt) for prompt in prompts]
            if self._open and self.open_bytes + sum(sizes) > self._most:
                self._next = fresh
                return None
            self._next = None
            self._shards += 1
            for prompt, size in zip(prompts, sizes, strict=True):
                self._open[prompt.index] = _Open(prompt, size, self._shards)
            self.open_bytes += sum(sizes)
            if prompts:
                return Shard(prompts)
        return None

    def _expected(self, prompt: Prompt) -> int:
        """Bytes: what positions took on average until now, but no less than usual, as the first receipts may be of failures."""
        known = self._published_bytes // max(1, self._published_positions)
        return self._positions(prompt) * max(POSITION_BYTES, known)

    def put_back(self, shard: Shard) -> None:
        """A shard that no actor can take yet."""
        self._retry.appendleft(shard)

    def produced(self, receipts: list[Receipt]) -> None:
        """An actor says it published these."""
        for receipt in receipts:
            if (prompt := self._open.get(receipt.index)) is not None:
                self.open_bytes += receipt.size - prompt.size
                self._published_bytes += receipt.size
                self._published_positions += self._positions(prompt.prompt)
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
                message = f"the actor died {state.deaths} times on this prompt, the last times with no other prompt"
                self._fail(state, "crash", message, prompt.metadata)
            else:
                (suspects if state.deaths >= DEATHS_BEFORE_ALONE else innocent).append(prompt)
        if innocent:
            self._retry.append(Shard(innocent))
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
                    self.open_bytes -= state.size
        return commits

    def check_receipts(self) -> list[Commit]:
        """Resubmit prompts whose frames are neither in the stream nor in the ledger. Returns commits seen on the way.

        The stream is made, at the first call and if the server lost it: until then actors wait with what they have.
        The stream is asked first and the ledger read after, so a commit in between is never taken for a loss.

        Raises:
            BrokerError: the server is away, or too full for a stream; call again.
            StoreError: results vanish however often they are sent.
        """
        now = time.monotonic()
        if now - self._checked < RECEIPT_SECONDS:
            return []
        self._checked = now
        self._stream.create()
        old = [state for state in self._open.values() if state.check_at is not None and now >= state.check_at]
        asked = [entry for state in old for entry in state.entries]
        missing = self._stream.missing(asked) if asked else set()
        commits = self.follow()
        again: defaultdict[int, list[Prompt]] = defaultdict(list)  # together, as they were before
        for state in old:
            if state.prompt.index not in self._open:
                continue
            if missing.intersection(state.entries):
                if self._vanished(state):
                    again[state.shard].append(state.prompt)
            else:
                state.patience = min(2 * state.patience, MAX_RECEIPT_SECONDS)
                state.check_at = now + state.patience
        self._retry.extend(Shard(prompts) for prompts in again.values())
        return commits

    def _vanished(self, state: _Open) -> bool:
        """Whether it is to be read again with others."""
        state.vanished += 1
        self.vanished += 1
        state.check_at, state.entries = None, []
        if state.vanished >= 2 * MAX_VANISHED:
            raise StoreError(
                f"results keep vanishing from the server before they are stored, most recently those of prompt "
                f"{state.prompt.id[:80]!r}; see the run's writer.log and quarantine"
            )
        if state.failure is not None:
            self._given_up.append(state)
        elif state.vanished >= MAX_VANISHED:
            # without metadata, in case it is this that the writer refuses
            self._fail(state, "delivery", f"its results vanished {state.vanished} times; see quarantine", {})
        elif state.deaths >= DEATHS_BEFORE_ALONE:
            self._retry.append(Shard([state.prompt], alone=True))
        else:
            return True
        return False

    def _fail(self, state: _Open, kind: str, message: str, metadata: Metadata) -> None:
        state.failure = Failure(state.prompt.id, state.prompt.index, kind, message, metadata)
        self._given_up.append(state)

    def publish_failures(self) -> None:
        """Send the failures of prompts that were given up.

        Raises:
            BrokerError: the server is away or full; call again.
        """
        while self._given_up:
            state = self._given_up[0]
            if state.failure is not None and state.prompt.index in self._open:
                self.produced([self._give_up(state.failure)])
            self._given_up.popleft()
