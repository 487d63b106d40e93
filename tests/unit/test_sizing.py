"""How a cluster is divided among actors, from what its nodes have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.scheduler.sizing import Share, room, share
from raylens.storage.errors import ClusterError

#: What a node has besides, which is none of ours.
REST = {"memory": 8e9, "object_store_memory": 2e9, "node:127.0.0.1": 1.0}


def node(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    """As Ray tells it: what there is none of is not named."""
    return {name: number for name, number in (("CPU", cpus), ("GPU", gpus)) if number} | REST


def of_cpus(*cpus: float) -> list[dict[str, float]]:
    return [node(number) for number in cpus]


#: Two nodes of three GPUs, and one of CPUs alone.
GPUS = [node(1, 3), node(1, 3), node(9)]


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus_per_actor", "found"),
    [
        # beside a GPU no more CPUs than its node has for each, however many others have
        (GPUS, None, 1, Share(6, 0.3333, 1)),
        (GPUS, 2, 2, Share(2, 1.0, 2)),
        (GPUS, None, 0.5, Share(12, 0.1666, 0.5)),
        ([node(64, 8)], None, 1, Share(8, 1.0, 1)),
        # none of a fraction is spread over two GPUs, none of several over two nodes
        (GPUS, None, 0.07, Share(84, 0.0238, 0.07)),
        (GPUS, None, 0.6, Share(6, 0.3333, 0.6)),
        (GPUS, None, 2, Share(2, 1.0, 2)),
        # where an actor asks for none, one a node
        (GPUS, None, 0, Share(3, 1.0, 0.0)),
        # of equal nodes one a node; of 2 and 4 CPUs three of 2; of 1, 8 and 9 two of 8, for of that one's there would be 18
        (of_cpus(4, 4, 4), None, 1, Share(3, 4.0, 0.0)),
        (of_cpus(0, 2, 4), None, 1, Share(3, 2.0, 0.0)),
        (of_cpus(1, 8, 9), None, 1, Share(2, 8.0, 0.0)),
        # as many as the user says are as large as nodes have room for
        (of_cpus(0, 2, 4), 2, 1, Share(2, 2.0, 0.0)),
        (of_cpus(0, 2, 4), 12, 1, Share(12, 0.5, 0.0)),
        (of_cpus(1, 8, 9), 1, 1, Share(1, 9.0, 0.0)),
        (of_cpus(1, 8, 9), 3, 1, Share(3, 4.5, 0.0)),
    ],
)
def test_shares(nodes: list[dict[str, float]], actors: int | None, gpus_per_actor: float, found: Share) -> None:
    assert share(nodes, actors, gpus_per_actor) == found


def test_the_machine_that_was_named_is_passed_on() -> None:
    assert share(of_cpus(2), None, 1, "127.0.0.3").host == "127.0.0.3"


@pytest.mark.parametrize(
    ("nodes", "gpus_per_actor", "told"),
    [
        (GPUS, 4, "--gpus-per-actor 4: no node of the cluster has that many GPUs"),
        (of_cpus(0, 0), 1, "no node of the Ray cluster has a CPU"),
        ([], 1, "no node of the Ray cluster has a CPU"),
    ],
)
def test_no_node_has_what_an_actor_needs(nodes: list[dict[str, float]], gpus_per_actor: float, told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        share(nodes, None, gpus_per_actor)


some_cpus = st.lists(st.integers(1, 64), min_size=1, max_size=8).map(lambda cpus: of_cpus(*cpus))
some_gpus = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 8)), min_size=1, max_size=6).map(
    lambda nodes: [node(*one) for one in nodes]
)


@given(some_cpus, st.integers(1, 40))
def test_as_many_as_were_asked_for_have_room_and_could_not_be_larger(nodes: list[dict[str, float]], actors: int) -> None:
    found = share(nodes, actors, 1)
    assert found.actors == actors
    assert room(nodes, found) >= actors
    assert room(nodes, Share(actors, found.cpus + 2e-4, 0.0)) < actors


@given(some_cpus)
def test_by_default_no_larger_actors_would_use_as_many_cpus(nodes: list[dict[str, float]]) -> None:
    """Up to the part that may idle; and as many as there are have room."""
    found, whole = share(nodes, None, 1), sum(one["CPU"] for one in nodes)
    assert found.actors == room(nodes, found)
    used = min(found.actors * found.cpus, 0.75 * whole)
    for one in nodes:
        larger = Share(1, one["CPU"], 0.0)
        assert larger.cpus <= found.cpus or min(room(nodes, larger) * larger.cpus, 0.75 * whole) < used


@given(some_gpus, st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_every_gpu_is_used(nodes: list[dict[str, float]], gpus_per_actor: float) -> None:
    """Whatever a node's CPUs: the actors on its GPUs ask for no more than it has."""
    found = share(nodes, None, gpus_per_actor)
    assert found.actors == room(nodes, found) == sum(one["GPU"] for one in nodes) * round(1 / gpus_per_actor)
    assert all(one["GPU"] * round(1 / gpus_per_actor) * found.cpus <= one["CPU"] + 1e-9 for one in nodes)
