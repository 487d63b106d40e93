"""What a run is asked to do: what cannot be is refused under its option's name, before anything is begun."""

from pathlib import Path
from typing import Any

import pytest

from raylens.scheduler.settings import MAX_HELPERS, RunSettings, check, check_helpers
from raylens.storage.errors import UsageError
from raylens.workers.settings import ModelSettings, WorkerSettings


def asked(**changes: Any) -> RunSettings:
    return RunSettings(WorkerSettings(ModelSettings("demo")), Path("store"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actors": 0}, "--actors 0: must be at least 1"),
        ({"actors": -1}, "--actors -1: must be at least 1"),
        ({"gpus_per_actor": -0.5}, "--gpus-per-actor -0.5: must be 0, or from 0.0001 to less than 1000"),
        ({"gpus_per_actor": 0.00005}, "--gpus-per-actor 5e-05: must be 0, or from 0.0001"),
        ({"gpus_per_actor": float("nan")}, "--gpus-per-actor nan"),
        ({"gpus_per_actor": float("inf")}, "--gpus-per-actor inf"),
        ({"gpus_per_actor": 2.5}, "--gpus-per-actor 2.5: use a whole number, or a fraction of one"),
        ({"writer_helpers": -1}, "--writer-helpers -1: use a number from 0 to 256"),
        ({"writer_helpers": MAX_HELPERS + 1}, "--writer-helpers 257: use a number from 0 to 256"),
        ({"writer": "external"}, "--writer external: the embedded server is not reached from outside; give --redis URL"),
        ({"writer": "mine"}, "writer 'mine': choose from own, external"),
        *(({"name": name}, "--name ") for name in ("", ".", ".hidden", "../up", "a/b", "a b", "é", "٣", "x" * 101)),
    ],
    ids=str,
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    """One error with the option as the user knows it."""
    with pytest.raises(UsageError) as refused:
        check(asked(**changes))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actors": 1, "gpus_per_actor": 0.0},
        {"gpus_per_actor": 0.25},
        {"gpus_per_actor": 999.0},
        {"writer_helpers": 0},
        {"writer_helpers": MAX_HELPERS},
        {"writer": "external", "redis": "redis://elsewhere"},
        *({"name": name} for name in ("a", "-x", "Run_2.old-1", "x" * 100)),
    ],
    ids=str,
)
def test_what_can_be(changes: dict[str, Any]) -> None:
    """The defaults, and each option at its bounds."""
    check(asked(**changes))


def test_helpers_of_a_writer_by_itself() -> None:
    """``raylens writer`` has the same bounds under a name of its own."""
    check_helpers("--helpers", None)
    with pytest.raises(UsageError, match="--helpers 257: use a number from 0 to 256"):
        check_helpers("--helpers", MAX_HELPERS + 1)
