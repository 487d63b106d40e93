"""What a run takes, with its own settings or with other places: its corpus and what was measured, put together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylens.scheduler.dry_run.costs import Costs, Range
from raylens.scheduler.dry_run.extent import Extent
from raylens.workers.chosen import chosen_places

if TYPE_CHECKING:
    from raylens.scheduler.dry_run.rehearsal import Rehearsal


@dataclass(frozen=True, slots=True)
class Bill:
    """Positions, taps and layers left out are those of the run.

    Attributes:
        extent: of the corpus.
        measured: of some of its prompts.
        costs: by these.
        taps, layers: that the run reads, but for heads.
        heads: (head, layer) that it reads too, whatever the taps and layers.
        here: whether the run's actors are like what was measured.
    """

    extent: Extent
    measured: "Rehearsal"
    costs: Costs
    taps: tuple[str, ...]
    layers: tuple[int, ...]
    heads: int
    here: bool

    @property
    def places(self) -> int:
        """(tap, layer, position) of the run."""
        return self.places_with(self.extent.positions, self.taps, self.layers)

    def places_with(self, positions: int, taps: tuple[str, ...], layers: tuple[int, ...]) -> int:
        """(tap, layer, position) of a run with these."""
        return positions * (len(chosen_places(taps, layers)) + self.heads)

    def seconds(
        self, positions: int | None = None, taps: tuple[str, ...] | None = None, layers: tuple[int, ...] | None = None
    ) -> Range | None:
        """From the command to its end; None where it is not known."""
        changed = (positions, taps, layers) != (None, None, None)
        if not self.here or (changed and not self.measured.contrasts):
            return None
        worker, taps, layers = self.measured.worker, taps or self.taps, layers or self.layers
        products = (worker.products(taps, layers) + self.heads) / (worker.products(self.taps, self.layers) + self.heads)
        return self.costs.run(
            self.extent.given, self.extent.positions if positions is None else positions, products, self._share(taps, layers)
        )

    def store_bytes(
        self, positions: int | None = None, taps: tuple[str, ...] | None = None, layers: tuple[int, ...] | None = None
    ) -> int:
        """Bytes of the run's folder."""
        stored = self.measured.stored
        positions = self.extent.positions if positions is None else positions
        lens = stored.lens_bytes * positions / max(1, stored.positions) * self._share(taps or self.taps, layers or self.layers)
        return round(stored.fixed_bytes + stored.prompt_bytes * self.extent.prompts / max(1, stored.prompts) + lens)

    def sent_bytes(self) -> int:
        """Bytes of all frames, nearly all of which are of positions."""
        stored, extent = self.measured.stored, self.extent
        if not stored.positions:
            return round(stored.sent_bytes * extent.prompts / max(1, stored.prompts))
        return round(stored.sent_bytes * extent.positions / stored.positions)

    def _share(self, taps: tuple[str, ...], layers: tuple[int, ...]) -> float:
        """Places of a position, to those that the run reads."""
        return self.places_with(1, taps, layers) / self.places_with(1, self.taps, self.layers)
