"""From what was measured of some prompts to what all of them take."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from raylens.storage.writer import COMMIT_SECONDS

if TYPE_CHECKING:
    from raylens.scheduler.dry_run.rehearsal import Call, Rehearsal


class Range(msgspec.Struct, frozen=True):
    """Seconds: the figure expected, and between which it should be."""

    least: float
    expected: float
    most: float


@dataclass(frozen=True, slots=True)
class Crew:
    """Who does the work.

    Attributes:
        speed: so many times as much the actors do together as the one that was measured.
        cores: that actors and writer share; infinite where the actors compute on GPUs.
        writers: processes that store at once.
    """

    speed: float
    cores: float
    writers: int


class Costs:
    """Of a run with its settings, or with other places read out.

    Args:
        measured: of some of its prompts.
        start: seconds before the first prompt is read and after the last is stored.
        crew: who does the work.
    """

    def __init__(self, measured: "Rehearsal", start: float, crew: Crew) -> None:
        self._token, self._position = fit([*measured.calls, *measured.contrasts])
        self._start, self._crew = start, crew
        # a call whose prompts all failed has no position, and may cost nothing by what the others took
        read = [(call.seconds, cost) for call in measured.calls if (cost := self._read(call.tokens, call.positions)) > 0]
        parts = [seconds / cost for seconds, cost in read]
        expected = sum(seconds for seconds, _ in read) / sum(cost for _, cost in read) if read else 1.0
        self._parts = Range(min(parts), expected, max(parts)) if parts else Range(1.0, 1.0, 1.0)
        stored = measured.stored
        self._written = stored.seconds / max(1, stored.positions)

    def work(self, tokens: int, positions: int, products: float = 1.0) -> Range:
        """Seconds that one actor like the one measured needs.

        Args:
            products: rows a position that are multiplied with the unembedding, to those of the settings measured.
        """
        seconds = self._read(tokens, positions * products)
        return Range(*(part * seconds for part in (self._parts.least, self._parts.expected, self._parts.most)))

    def run(self, tokens: int, positions: int, products: float = 1.0, places: float = 1.0) -> Range:
        """Seconds from the command to its end.

        Args:
            products: as of ``work``.
            places: read out at a position, to those of the settings measured.
        """
        work, written = self.work(tokens, positions, products), self._written * positions * places
        # the writer has its own cores, or takes part of the actors' time
        alone = written / self._crew.writers
        least = max(work.least / self._crew.speed, alone)
        expected = max(work.expected / self._crew.speed + written / self._crew.cores, alone)
        most = max(work.most / self._crew.speed, alone) + (written if np.isfinite(self._crew.cores) else 0.0)
        # what comes last waits to be committed until the oldest with it has waited so long
        return Range(self._start + least, self._start + expected + COMMIT_SECONDS / 2, self._start + most + COMMIT_SECONDS)

    def _read(self, tokens: float, positions: float) -> float:
        return self._token * tokens + self._position * positions


def fit(calls: "list[Call]") -> tuple[float, float]:
    """Seconds a token and a position, neither below 0, that come nearest to what calls took, in proportion.

    Where positions are as many as tokens in all of them, only the sum of the two means anything.
    """
    if not calls:
        return 0.0, 0.0
    rows = np.array([[call.tokens, call.positions] for call in calls]) / np.array([[call.seconds] for call in calls])
    both = np.linalg.lstsq(rows, np.ones(len(calls)), rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [float(rows[:, at].sum() / max((rows[:, at] ** 2).sum(), 1e-300)) for at in range(2)]
    errors = [float(((rows[:, at] * alone[at] - 1) ** 2).sum()) for at in range(2)]
    return (alone[0], 0.0) if errors[0] <= errors[1] else (0.0, alone[1])
