"""How a cluster is divided among actors: how many there are, and what each gets. Knows no Ray, only what its nodes have."""

import heapq
import math
from dataclasses import dataclass

from raylens.storage.errors import ClusterError

#: Of the CPUs of unequal nodes this part may be left idle, for actors that are few and large: each holds a model.
IDLE_PART = 0.25
#: In which Ray counts what a node has, of one.
_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class Share:
    """What each of ``actors`` actors gets, and the one machine on which they may be; None for any."""

    actors: int
    cpus: float
    gpus: float
    host: str | None = None


def share(nodes: list[dict[str, float]], actors: int | None, gpus_per_actor: float, host: str | None = None) -> Share:
    """How the cluster is divided: by GPUs where it has any, else by CPUs, of equal nodes one actor a node.

    Args:
        nodes: what each that may hold actors has, as ``cluster.resources``.
        actors: how many; None for as many as there is room for.
        gpus_per_actor: of each, where there are GPUs.
        host: the machine on which they may be; None for any.

    Raises:
        ClusterError: no node has what one actor needs.
    """
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if not gpus or not gpus_per_actor:
        return _cpu_share(actors, nodes, host)
    places = [(node, count) for node in nodes if (count := _gpu_places(node, gpus_per_actor))]
    if not places:
        raise ClusterError(f"--gpus-per-actor {gpus_per_actor:g}: no node of the cluster has that many GPUs")
    # as many as the poorest of these nodes has for each of its GPUs, or some of these would be left idle
    beside = min(1.0, *(node.get("CPU", 0.0) / count for node, count in places))
    return Share(actors or sum(count for _, count in places), _in_ray(beside), gpus_per_actor, host)


def _cpu_share(actors: int | None, nodes: list[dict[str, float]], host: str | None) -> Share:
    cpus = [node["CPU"] for node in nodes if node.get("CPU", 0.0) > 0]
    if not cpus:  # the nodes that were there have left
        raise ClusterError("no node of the Ray cluster has a CPU for actors any more")
    if any(node.get("GPU") for node in nodes):  # an actor takes none of Ray, but sees them: one a node, with the CPUs of one
        actors = actors or len(cpus)
        return Share(actors, _in_ray(min(sum(cpus) / actors, *cpus, 1.0)), 0.0, host)
    if actors is None:
        each = _in_ray(_few_and_large(cpus))
        return Share(_cpu_places(nodes, each), each, 0.0, host)
    # the largest of which the nodes have room for so many: of a node's CPUs, one has all, two a half each, and so on
    each = heapq.nlargest(actors, (cpu / beside for cpu in cpus for beside in range(1, actors + 1)))[-1]
    return Share(actors, _in_ray(each), 0.0, host)


def _few_and_large(cpus: list[float]) -> float:
    """CPUs of an actor that has a whole node, but leaves few idle: richer nodes may hold several, much poorer ones none."""

    def used(each: float) -> float:
        return min((1 - IDLE_PART) * sum(cpus), sum(_times(cpu, each) * each for cpu in cpus))

    return max(cpus, key=lambda each: (used(each), each))


def _in_ray(cpus: float) -> float:
    """Not more than so many, in Ray's steps."""
    return math.floor(cpus * _STEPS) / _STEPS


def _times(whole: float, each: float) -> int:
    """How often one is in the other, as Ray counts: five times 0.2 is 1, which division of floats says is too much."""
    return round(whole * _STEPS) // round(each * _STEPS)


def room(nodes: list[dict[str, float]], parts: Share) -> int:
    """How many actors of such a share the nodes have room for."""
    if parts.gpus:
        return sum(_gpu_places(node, parts.gpus) for node in nodes)
    return _cpu_places(nodes, parts.cpus)


def _cpu_places(nodes: list[dict[str, float]], each: float) -> int:
    """Actors of so many CPUs that the nodes hold, where they take no GPUs: one a node if there are some nevertheless."""
    places = [_times(node.get("CPU", 0.0), each) for node in nodes]
    return sum(min(one, 1) for one in places) if any(node.get("GPU") for node in nodes) else sum(places)


def _gpu_places(node: dict[str, float], each: float) -> int:
    """Actors of so many GPUs that a node holds: none is spread over two nodes, and none of a fraction over two GPUs."""
    gpus = node.get("GPU", 0.0)
    return _times(gpus, each) if each >= 1 else int(gpus) * _times(1.0, each)
