"""An explicit-state model of the delivery protocol (docs/PROTOCOL.md), small enough to be explored completely.

One prompt whose record has several chunks; a driver, actors that may die or go on as zombies, a server that may lose
everything, two writers, and the ledger. Every interleaving of their steps is a path; faults are steps too, up to a number.
Each planted ``bug`` removes one rule of the protocol, to show that the rule is needed and that the check would notice.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

#: Bugs that can be planted, each the absence of one rule.
BUGS = ("ack_on_read", "trust_the_task", "no_receipt_check", "no_fence", "no_dedupe", "mixed_attempts", "anyone_makes_the_stream")

Entry = tuple[int, int]  # attempt, chunk


class Writer(NamedTuple):
    """A writer process. ``next`` is the number of its next commit, ``has`` the entries it has read and not dropped."""

    next: int
    knows: bool  # the prompt is in the ledger as it has read it
    has: frozenset[Entry]
    spent: frozenset[Entry]  # to be deleted from the stream


class State(NamedTuple):
    """Everything at one moment."""

    driver: str  # pending, leased, produced, missing (asked the stream, not yet the ledger), done, ended (stream dropped)
    lease: int  # the attempt the driver follows
    published: tuple[int, ...]  # chunks that each attempt has published
    alive: tuple[bool, ...]  # whether each attempt can go on
    stream: frozenset[Entry] | None  # None where the server has no such key
    writers: tuple[Writer | None, Writer | None]
    ledger: tuple[frozenset[Entry] | None, ...]  # what each commit holds; None for a fence
    faults: int


START = State("pending", -1, (), (), None, (None, None), (), 0)


class Model:
    """The protocol for given bounds, with or without a planted bug."""

    def __init__(self, chunks: int = 2, attempts: int = 3, faults: int = 2, commits: int = 5, bug: str = "") -> None:
        self.chunks, self.attempts, self.faults, self.commits, self.bug = chunks, attempts, faults, commits, bug

    def steps(self, state: State) -> Iterator[tuple[State, bool]]:
        """Each state that can follow, and whether a fault leads there."""
        yield from ((after, False) for after in self._driver(state))
        yield from ((after, False) for after in self._actors(state))
        for number in (0, 1):
            yield from ((after, False) for after in self._writer(state, number))
        if state.faults < self.faults:
            hurt = state._replace(faults=state.faults + 1)
            yield from ((after, True) for after in self._faults(hurt))

    def violation(self, state: State) -> str:
        """Which invariant a state breaks, if any."""
        records = [commit for commit in state.ledger if commit is not None]
        if len(records) > 1:
            return "S1: two records of one prompt"
        if any(len({attempt for attempt, _ in commit}) > 1 or len(commit) < self.chunks for commit in records):
            return "S2: a record that is not all chunks of one attempt"
        if state.driver in {"done", "ended"} and not records:
            return "S4: reported done without being in the ledger"
        for writer in state.writers:
            if writer is not None and writer.spent and not records:
                return "S3: deletes what is not in the ledger"
        if state.driver == "ended" and state.stream is not None:
            return "S5: a finished run left its key"
        return ""

    def over(self, state: State) -> bool:
        """The goal: the prompt is in the ledger, the driver knows, and the stream is gone."""
        return state.driver == "ended" and _stored(state)

    def _driver(self, state: State) -> Iterator[State]:
        if state.driver == "ended":
            return
        if state.driver == "done":
            yield state._replace(driver="ended", stream=None)
        elif state.stream is None:
            yield state._replace(stream=frozenset())
        if state.driver not in {"done", "missing"} and _stored(state):
            yield state._replace(driver="done")
        if state.driver == "pending" and len(state.published) < self.attempts:
            lease = len(state.published)
            yield state._replace(driver="leased", lease=lease, published=(*state.published, 0), alive=(*state.alive, True))
        if state.driver == "produced":
            if self.bug == "trust_the_task":
                yield state._replace(driver="done")
            entries = {(state.lease, chunk) for chunk in range(self.chunks)}
            if self.bug != "no_receipt_check" and not entries <= (state.stream or frozenset()):
                yield state._replace(driver="missing")
        if state.driver == "missing":  # the stream was asked first; now the ledger is read
            yield state._replace(driver="done" if _stored(state) else "pending")

    def _actors(self, state: State) -> Iterator[State]:
        for attempt, (published, alive) in enumerate(zip(state.published, state.alive, strict=True)):
            if not alive:
                continue
            if published < self.chunks and state.stream is None and self.bug != "anyone_makes_the_stream":
                continue  # it waits
            if published < self.chunks:
                counts = _put(state.published, attempt, published + 1)
                yield state._replace(published=counts, stream=(state.stream or frozenset()) | {(attempt, published)})
            else:
                told = state.driver == "leased" and state.lease == attempt
                yield state._replace(alive=_put(state.alive, attempt, False), driver="produced" if told else state.driver)

    def _writer(self, state: State, number: int) -> Iterator[State]:
        writer = state.writers[number]
        if writer is None:
            yield from self._open(state, number)
            return
        for entry in (state.stream or frozenset()) - writer.has - writer.spent:
            yield self._read(state, number, writer, entry)
        if not writer.knows or self.bug == "no_dedupe":
            for record in self._complete(writer):
                yield self._commit(state, number, writer, record)
        if writer.spent:
            after = writer._replace(spent=frozenset())
            left = state.stream and state.stream - writer.spent
            yield state._replace(stream=left, writers=_put(state.writers, number, after))

    def _open(self, state: State, number: int) -> Iterator[State]:
        if len(state.ledger) >= self.commits:
            return
        ledger = state.ledger if self.bug == "no_fence" else (*state.ledger, None)
        writer = Writer(len(ledger), _stored(state), frozenset(), frozenset())
        yield state._replace(ledger=ledger, writers=_put(state.writers, number, writer))

    def _read(self, state: State, number: int, writer: Writer, entry: Entry) -> State:
        if self.bug == "ack_on_read":
            after = writer._replace(has=writer.has | {entry}, spent=writer.spent | {entry})
            return state._replace(stream=state.stream and state.stream - {entry}, writers=_put(state.writers, number, after))
        if writer.knows and self.bug != "no_dedupe":
            after = writer._replace(spent=writer.spent | {entry})
        else:
            after = writer._replace(has=writer.has | {entry})
        return state._replace(writers=_put(state.writers, number, after))

    def _complete(self, writer: Writer) -> Iterator[frozenset[Entry]]:
        attempts = {attempt for attempt, _ in writer.has}
        if self.bug == "mixed_attempts" and {chunk for _, chunk in writer.has} >= set(range(self.chunks)):
            yield frozenset(min(entry for entry in writer.has if entry[1] == chunk) for chunk in range(self.chunks))
        for attempt in attempts:
            wanted = frozenset((attempt, chunk) for chunk in range(self.chunks))
            if wanted <= writer.has:
                yield wanted

    def _commit(self, state: State, number: int, writer: Writer, record: frozenset[Entry]) -> State:
        if len(state.ledger) != writer.next and self.bug != "no_fence":
            return state._replace(writers=_put(state.writers, number, None))  # its number is taken: it stops
        ledger = (*state.ledger, record)
        after = Writer(len(ledger), True, writer.has - record if self.bug == "no_dedupe" else frozenset(), writer.has)
        return state._replace(ledger=ledger, writers=_put(state.writers, number, after))

    def _faults(self, state: State) -> Iterator[State]:
        for attempt, alive in enumerate(state.alive):
            if alive:
                driver = "pending" if state.driver == "leased" and state.lease == attempt else state.driver
                yield state._replace(alive=_put(state.alive, attempt, False), driver=driver)
                yield state._replace(driver=driver)  # taken for dead, but goes on
        if state.stream is not None:
            yield state._replace(stream=None)
        for number in (0, 1):
            if state.writers[number] is not None:
                yield state._replace(writers=_put(state.writers, number, None))
        if state.driver not in {"pending", "ended"}:
            yield state._replace(driver="done" if _stored(state) else "pending", lease=-1)  # a new driver reads the ledger


def explore(model: Model, limit: int = 3_000_000) -> tuple[int, str]:
    """Visit every reachable state; their number, and the first violation: of an invariant, or of liveness.

    Liveness: from every state a path without further faults reaches the goal. Bounds may leave a state without attempts
    or commits to spend; such a state is not held against the protocol.
    """
    numbers = {START: 0}
    queue, backwards = deque([START]), dict[int, list[int]]()
    goals, spent = [], set[int]()
    while queue:
        state = queue.popleft()
        here = numbers[state]
        if broken := model.violation(state):
            return len(numbers), broken
        if model.over(state):
            goals.append(here)
        if (state.driver == "pending" and len(state.published) >= model.attempts) or len(state.ledger) >= model.commits:
            spent.add(here)
        for after, fault in model.steps(state):
            if after not in numbers:
                assert len(numbers) < limit, "more states than the bound allows"
                numbers[after] = len(numbers)
                queue.append(after)
            if not fault:
                backwards.setdefault(numbers[after], []).append(here)
    reached, work = set(goals) | spent, [*goals, *spent]
    while work:
        for before in backwards.get(work.pop(), ()):
            if before not in reached:
                reached.add(before)
                work.append(before)
    stuck = len(numbers) - len(reached)
    return len(numbers), f"L: {stuck} states cannot finish" if stuck else ""


def _stored(state: State) -> bool:
    return any(commit is not None for commit in state.ledger)


def _put(values: tuple, place: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:place], value, *values[place + 1 :])
