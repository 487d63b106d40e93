"""What went wrong in an actor, from Ray's exceptions."""

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

from raylens.storage.errors import ModelError, RaylensError

#: What tells that an actor died; the second where Ray itself ended it, to save its node.
DEATHS = (RayActorError, OutOfMemoryError)


def cause(error: RayTaskError) -> RaylensError:
    """The error of raylens's own that the actor raised, or one that names what else it was."""
    found = error.cause if isinstance(error.cause, BaseException) else error
    if isinstance(found, RaylensError):
        return found
    line = reason(found)
    remedy = "try fewer --actors or --batch-tokens" if "memory" in line.lower() else "try it on another model or report it"
    return ModelError(f"an actor failed: {type(found).__name__}: {line}; {remedy}")


def reason(error: BaseException) -> str:
    """The line of Ray's long message that says why; of a node short of memory its first sentence."""
    if isinstance(error, ActorUnavailableError):  # all that there is of an actor that Ray restarts, whatever ended it
        return "Ray does not say of what; maybe its node is short of memory, or out of reach"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    short = [line.partition(". ")[0].rstrip(".") for line in lines if "low on memory" in line]
    return (short or [line for line in lines if "OOM" in line] or lines[-1:])[0][:200]
