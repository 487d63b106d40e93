"""Waiting for Ray to place and start actors: the user is told, and it has an end."""

import time
from collections.abc import Callable

from raylens.storage.errors import ClusterError

#: Seconds after which the user is told that actors have no place yet, and after which they are waited for no more.
PLACE_SECONDS = 10.0
MAX_PLACE_SECONDS = 600.0


class Placing:
    """How long actors have been waited for.

    Args:
        tell: what is told so, once.

    Attributes:
        told: whether it was.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._began = time.monotonic()
        self.told = False

    def check(self, missing: str) -> None:
        """To be called again and again while there are too few.

        Args:
            missing: such as "no actor has started;", with which the error begins.

        Raises:
            ClusterError: it has taken too long.
        """
        waited = time.monotonic() - self._began
        if waited >= MAX_PLACE_SECONDS:
            raise ClusterError(
                f"{missing} check whether something else uses the cluster's CPUs or GPUs, and whether Ray's logs on "
                "its nodes (/tmp/ray/session_latest/logs) say why processes end"
            )
        if waited >= PLACE_SECONDS and not self.told:
            self.told = True
            self._tell("waiting for the Ray cluster to place and start the actors")
