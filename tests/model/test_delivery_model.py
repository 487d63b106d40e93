"""The delivery protocol, explored completely within bounds: it holds, and each rule of it is needed."""

import pytest

from tests.model.delivery import BUGS, Model, explore


def test_protocol_holds() -> None:
    """Two writers, two chunks a record, two faults, two attempts: no invariant breaks and every state can finish."""
    states, broken = explore(Model(chunks=2, attempts=2, faults=2, commits=4))
    assert not broken
    assert states > 100_000


@pytest.mark.parametrize("bug", BUGS)
def test_each_planted_bug_is_caught(bug: str) -> None:
    """Without any one of its rules the protocol breaks."""
    _, broken = explore(Model(chunks=2, attempts=2, faults=1, commits=4, bug=bug))
    assert broken
