"""Whether the other machines of a cluster have this raylens and what it needs.

Ray would try to import the actor there for ever, and say so in a log; another raylens may compute other records.
"""

from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylens import __version__
from raylens.scheduler.requirements import requirements
from raylens.storage.errors import ClusterError

#: Seconds to wait for an answer before a run begins; a node that is too busy to give one is left to the actors.
ANSWER_SECONDS = 60.0
#: Seconds to wait for one from nodes that have joined meanwhile, in which nothing else is looked after.
JOINED_SECONDS = 10.0


class Nodes:
    """The nodes of the cluster but this process's own, each asked once."""

    def __init__(self) -> None:
        self._needed = [one.name for one in requirements()]
        self._known = {ray.get_runtime_context().get_node_id()}
        self._asked: dict[Any, str] = {}

    def check(self, seconds: float = JOINED_SECONDS) -> None:
        """Ask the nodes that are new; those that do not answer within so many seconds are heard the next time.

        Raises:
            ClusterError: raylens is missing on one, or is another version, or lacks a package; naming each such node.
        """
        new = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._known]
        for node in new:
            self._known.add(node["NodeID"])
            self._asked[_ask(node["NodeID"], self._needed)] = node["NodeManagerAddress"]
        if not self._asked:
            return
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=seconds if new else 0)
        found = [(self._asked.pop(call), _problem(call)) for call in answered]
        if problems := [f"{address} {problem}" for address, problem in found if problem]:
            raise ClusterError(
                f"nodes of the Ray cluster cannot run actors: {'; '.join(problems)}. "
                f"Install raylens=={__version__} there with pip, or start Ray there from an environment that has it"
            )


def _ask(node: str, needed: list[str]) -> Any:
    def installed(needed: list[str]) -> tuple[str | None, list[str]]:
        # sent as its code, since on that node there may be no module to import it from
        from importlib.metadata import Distribution

        missing = [name for name in needed if not any(Distribution.discover(name=name))]
        try:
            import raylens
        except ImportError:
            return None, missing
        return str(raylens.__version__), missing

    task = ray.remote(num_cpus=0, max_retries=0)(installed)
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(needed)


def _problem(call: Any) -> str:
    try:
        version, missing = ray.get(call)
    except RayError:  # it left meanwhile; Ray places actors elsewhere
        return ""
    if version is None:
        return "has no raylens"
    if version != __version__:
        return f"has raylens {version}, and this is {__version__}"
    return f"lacks {', '.join(missing)}" if missing else ""
