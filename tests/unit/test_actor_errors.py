"""Ray's exceptions, in the words that a user gets: raylens's own error as it was, or one line with a remedy."""

import pytest
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

from raylens.scheduler.actor_errors import cause, reason
from raylens.storage.errors import BrokerError, ModelError, one_line

#: As Ray writes it, but for the addresses.
SHORT_OF_MEMORY = """The actor died unexpectedly before finishing this task.
The actor is dead because all references to the actor were removed.
Task was killed due to the node running low on memory. Memory on the node was 15.4GB / 16.0GB.
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io"""


def raised(error: BaseException) -> RayTaskError:
    """As Ray hands on what a call of an actor raised."""
    return RayTaskError("work", "Traceback", error)


def test_an_error_of_ours_comes_as_it_was() -> None:
    """So that its exit code is that of what went wrong."""
    error = BrokerError("the server is away")
    assert cause(raised(error)) is error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("first\n  what it is\n\n"), "an actor failed: ValueError: what it is; try it on another model or report it"),
        (KeyError(), "an actor failed: KeyError: KeyError; try it on another model or report it"),
        (RuntimeError("CUDA: Out of Memory"), "RuntimeError: CUDA: Out of Memory; try fewer --actors or --batch-tokens"),
    ],
    ids=["of several lines", "without words", "memory"],
)
def test_any_other_error_is_one_line_with_a_remedy(error: Exception, message: str) -> None:
    """Its type, its last line, and what to try."""
    found = cause(raised(error))
    assert type(found) is ModelError
    assert str(found).endswith(message)


def test_what_ended_an_actor() -> None:
    """Of a node short of memory the first sentence about it, of the kernel's killer its line, else the last line, cut to 200."""
    assert reason(OutOfMemoryError(SHORT_OF_MEMORY)) == "Task was killed due to the node running low on memory"
    assert reason(OSError("it died\nperhaps by the OOM killer\nsee the log")) == "perhaps by the OOM killer"
    assert reason(OSError("it died\nsee the log ")) == "see the log"
    assert reason(OSError("x" * 500)) == "x" * 200
    assert reason(RayActorError(error_msg=" ")) == "RayActorError"


def test_an_actor_that_ray_restarts() -> None:
    """Ray tells the same of each death, be it for want of memory, and of a node that does not answer: both are named."""
    told = reason(
        ActorUnavailableError("The actor is temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14", None)
    )
    assert "memory" in told
    assert "out of reach" in told
    assert "rpc" not in told.lower()


def test_of_a_traceback_in_an_error_its_end_is_told() -> None:
    """As Ray hands on what failed in another process; the rest is of its own files."""
    error = ConnectionAbortedError(
        'from server:\nTraceback (most recent call last):\n  File "proxier.py"\nRuntimeError: It  failed.\n'
    )
    assert one_line(error) == "RuntimeError: It failed."
