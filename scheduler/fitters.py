"""The actors of a fit: each has its places, all make the same steps. An actor that dies ends the fit, which can be repeated."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raylens.scheduler.actor_errors import DEATHS, cause, reason
from raylens.scheduler.placing import Placing
from raylens.scheduler.sizing import Share
from raylens.storage.errors import ClusterError
from raylens.workers.fitting.fitter import Fitter
from raylens.workers.fitting.report import LayerReport
from raylens.workers.fitting.saving import Maps
from raylens.workers.fitting.settings import FitSettings
from raylens.workers.lenses.interface import Place

#: Seconds between two looks at whether the user wants to stop.
_POLL_SECONDS = 0.5


class Fitters:
    """Actors that fit at once.

    Args:
        settings, texts: as for Fitter.
        places: of the lens; they are dealt out in turn.
        share: how many actors, and what each gets.
        stopping: whether the user wants to stop.
    """

    def __init__(
        self,
        settings: FitSettings,
        texts: dict[str, list[list[int]]],
        places: list[Place],
        share: Share,
        stopping: Callable[[], bool],
    ) -> None:
        count = min(share.actors, len(places))
        self._places = [places[number::count] for number in range(count)]
        self._order = places
        self._stopping = stopping
        given, threads = ray.put(texts), max(1, int(share.cpus))
        actor = ray.remote(Fitter).options(num_cpus=share.cpus, num_gpus=share.gpus)
        self._actors = [actor.remote(settings, given, own, threads) for own in self._places]

    def run(self, told: Callable[[int, int], None], waiting: Callable[[str], None]) -> None:
        """Load the models and make all steps.

        Args:
            told: called with the steps that every actor has made, and their number.
            waiting: told what is waited for.

        Raises:
            ModelError: the model cannot be loaded, lensed or fitted.
            ClusterError: an actor died, or the cluster has no room for all of them.
            KeyboardInterrupt: the user wants to stop.
        """
        self._await_places(waiting)
        total = self._all(lambda actor: actor.load.remote())[0]
        for done in range(total):
            told(done, total)
            self._all(lambda actor: actor.advance.remote())
        told(total, total)

    def _await_places(self, waiting: Callable[[str], None]) -> None:
        """All at once, since each step is one of all: the cluster may have room for fewer, for now or for ever."""
        starting, count = [actor.__ray_ready__.remote() for actor in self._actors], len(self._actors)
        placing = Placing(waiting)
        while starting:
            started, starting = ray.wait(starting, num_returns=len(starting), timeout=_POLL_SECONDS)
            for answer in started:
                self._got(answer)
            if self._stopping():
                raise KeyboardInterrupt
            if starting:
                there = f"{count - len(starting)} of {count} actors have started"
                placing.check(f"{there}, and a fit needs all at once; try fewer --actors, or")

    def reports(self) -> list[LayerReport]:
        """Of every place, in the order of the model."""
        found = {(one.tap, one.layer): one for of_actor in self._all(lambda actor: actor.reports.remote()) for one in of_actor}
        return [found[place] for place in self._order]

    def maps(self) -> Maps:
        """The map of every place."""
        owners = zip(self._actors, self._places, strict=True)
        return {place: self._got(actor.map.remote(place)) for actor, own in owners for place in own}

    def stop(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)

    def _all(self, call: Callable[[Any], Any]) -> list[Any]:
        return [self._got(answer) for answer in [call(actor) for actor in self._actors]]

    def _got(self, answer: Any) -> Any:
        while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
            if self._stopping():
                raise KeyboardInterrupt
        if self._stopping():
            raise KeyboardInterrupt
        try:
            return ray.get(answer)
        except RayTaskError as error:
            raise cause(error) from None
        except DEATHS as error:
            remedy = "is there enough memory for the model? Try fewer --actors or --dtype bfloat16"
            raise ClusterError(f"an actor died ({reason(error)}); {remedy}") from None
