"""The actors of a run: who is ready, who is busy, who died. Ray places and restarts them; this only keeps them fed."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raylens.scheduler.actor_errors import DEATHS, cause, reason
from raylens.scheduler.nodes import Nodes
from raylens.scheduler.shards import Shard
from raylens.scheduler.sizing import Share
from raylens.storage.errors import BrokerError, ModelError
from raylens.workers.actor import start_actor
from raylens.workers.publish import Receipt, decode_receipts, encode_prompts
from raylens.workers.settings import WorkerSettings

#: Shards given to an actor at once: one at work and one waiting, so that it never idles.
DEPTH = 2
#: Deaths of an actor while it loads the model, after which the run is given up.
MAX_LOAD_DEATHS = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """An actor has loaded its model; its certificate."""

    certificate: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadDeath:
    """An actor died while it loaded its model; Ray starts it again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """An actor published a shard."""

    receipts: list[Receipt]


@dataclass(frozen=True, slots=True)
class Lost:
    """An actor did not answer for a shard. ``blame``: it died while at work on it. ``broker``: the server was away."""

    shard: Shard
    reason: str
    blame: bool
    broker: bool = False


Event = Loaded | LoadDeath | Done | Lost


@dataclass(eq=False, slots=True)
class _Slot:
    """One actor: the call that makes it ready, while it is not, and its shards, oldest first."""

    actor: Any
    loading: Any
    shards: deque[tuple[Any, Shard]] = field(default_factory=deque)
    load_deaths: int = 0
    cut_off: bool = False  # whether it could not reach the server when it last tried

    def has_room(self, shard: Shard) -> bool:
        if self.loading is not None or any(one.alone for _, one in self.shards):
            return False
        return len(self.shards) < (1 if shard.alone else DEPTH)


class Pool:
    """Actors that load at once and take shards as they become ready.

    Args:
        settings, run, redis: as for LensActor.
        share: how many actors, and what each gets.
        nodes: those that have been asked whether they can run actors.

    Attributes:
        placed: whether any actor has got its place on the cluster.
        deaths: of actors, in all.
    """

    def __init__(self, settings: WorkerSettings, run: str, redis: str, share: Share, nodes: Nodes) -> None:
        self._start = partial(start_actor, settings, run, redis, share.cpus, share.gpus, share.host)
        self._nodes = nodes
        self._slots: list[_Slot] = []
        self.placed = False
        self.deaths = 0
        self.grow(share.actors)

    def grow(self, size: int) -> int:
        """Start actors until there are so many; how many were started. Those that are there stay."""
        actors = [self._start() for _ in range(size - len(self._slots))]
        self._slots += [_Slot(actor, _begin(actor)) for actor in actors]
        return len(actors)

    @property
    def size(self) -> int:
        """Actors, ready or not."""
        return len(self._slots)

    @property
    def ready(self) -> int:
        """Actors that have loaded the model and live, as far as is known."""
        return sum(slot.loading is None for slot in self._slots)

    @property
    def at_work(self) -> list[Shard]:
        """The shard that each actor is at."""
        return [slot.shards[0][1] for slot in self._slots if slot.shards]

    def room(self) -> bool:
        """Whether any actor can take an ordinary shard now."""
        return any(slot.has_room(Shard([])) for slot in self._slots)

    def submit(self, shard: Shard) -> bool:
        """Give a shard to the actor with the fewest, and to one that is cut off last of all; False if none can take it now."""
        for slot in sorted(self._slots, key=lambda slot: (slot.cut_off, len(slot.shards))):
            if slot.has_room(shard):
                slot.shards.append((slot.actor.work.remote(encode_prompts(shard.prompts)), shard))
                return True
        return False

    def poll(self, seconds: float) -> Iterator[Event]:
        """What happened, after waiting up to ``seconds`` for something to happen.

        Raises:
            ModelError: the model cannot be loaded, or kills its actor each time it loads.
            ClusterError: a node that has joined cannot run actors.
        """
        waited_for = [slot.loading for slot in self._slots if slot.loading is not None]
        waited_for += [slot.shards[0][0] for slot in self._slots if slot.shards]
        if not waited_for:  # only the writer is at work
            time.sleep(seconds)
            return
        ray.wait(waited_for, timeout=seconds)  # for one of them, or the others would be waited for too
        finished = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)[0]
        for slot in self._slots:
            if slot.loading in finished:
                yield from self._loaded(slot)
            elif slot.shards and slot.shards[0][0] in finished:
                yield from self._worked(slot)

    def _loaded(self, slot: _Slot) -> Iterator[Event]:
        call, slot.loading = slot.loading, None
        self._nodes.check()  # it may be on one that has joined, or have died of it
        try:
            certificate = ray.get(call)
        except RayTaskError as error:
            raise cause(error) from None
        except DEATHS as error:
            slot.load_deaths += 1
            self.deaths += 1
            if slot.load_deaths >= MAX_LOAD_DEATHS:
                raise ModelError(
                    f"actors die while they load the model ({reason(error)}); is there enough memory for it?"
                ) from None
            slot.loading = _begin(slot.actor)
            yield LoadDeath(reason(error))
            return
        if certificate is None:  # the process is up: now its model
            self.placed = True
            slot.loading = slot.actor.load.remote()
            return
        slot.load_deaths = 0
        yield Loaded(certificate)

    def _worked(self, slot: _Slot) -> Iterator[Event]:
        call, shard = slot.shards.popleft()
        try:
            answer = ray.get(call)
        except RayTaskError as error:
            found = cause(error)
            if not isinstance(found, BrokerError):
                raise found from None
            slot.cut_off = True
            yield Lost(shard, f"server away ({found})", blame=False, broker=True)
        except DEATHS as error:
            self.deaths += 1
            # the oldest shard was at work; those behind it had not begun
            behind = [waiting for _, waiting in slot.shards]
            slot.shards.clear()
            slot.loading = _begin(slot.actor)
            yield Lost(shard, f"an actor died ({reason(error)})", blame=True)
            for waiting in behind:
                yield Lost(waiting, "", blame=False)
        else:
            slot.cut_off = False
            yield Done(decode_receipts(answer))

    def stop(self) -> None:
        """End the actors now. What they published stays; what they were computing is lost and resumable."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _begin(actor: Any) -> Any:
    # with retries Ray holds the call until the actor is back; without them it fails at once, again and again. Loading
    # itself is not retried, so that a model which kills its actor is noticed.
    return actor.up.options(max_task_retries=-1).remote()
