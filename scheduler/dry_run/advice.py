"""What would make a run cheaper, by the figures measured for it."""

from collections.abc import Iterator

import msgspec

from raylens.scheduler.dry_run.bill import Bill
from raylens.scheduler.progress import duration
from raylens.storage.layers import select_layers
from raylens.workers.settings import WorkerSettings

#: What is told saves at least this part of the time or of the bytes.
WORTH = 0.2
#: The layers of which such a part is chosen.
LAYERS = "::4"


class Advice(msgspec.Struct, frozen=True):
    """An option, and what the run takes with it.

    Attributes:
        option: as it is written.
        places: read out.
        store_bytes: of the store.
        seconds: expected; None where the time of the run is not known, or not what a place costs.
    """

    option: str
    places: int
    store_bytes: int
    seconds: float | None

    def line(self, places: int, store_bytes: int, seconds: float | None) -> str:
        """For people, given what the run takes without it."""
        words = [f"{self.places / max(1, places):.0%} of the places", f"{size(store_bytes)} -> {size(self.store_bytes)}"]
        if seconds is not None and self.seconds is not None:
            words.append(f"about {duration(seconds)} -> {duration(self.seconds)}")
        return f"{self.option}: {', '.join(words)}"


def size(bytes: int) -> str:  # noqa: A002
    """Bytes for people."""
    return f"{bytes / 1e9:,.2f} GB" if bytes >= 1e9 else f"{bytes / 1e6:,.1f} MB"


def advise(settings: WorkerSettings, bill: Bill, n_layers: int) -> list[Advice]:
    """What saves enough to be told, the most first."""
    found = [one for one in _options(settings, bill, n_layers) if _worth(one, bill)]
    return sorted(found, key=lambda one: (one.seconds or 0.0, one.store_bytes))


def _worth(one: Advice, bill: Bill) -> bool:
    seconds = bill.seconds()
    saved = 0.0 if seconds is None or one.seconds is None else 1 - one.seconds / seconds.expected
    return max(saved, 1 - one.store_bytes / max(1, bill.store_bytes())) >= WORTH


def _options(settings: WorkerSettings, bill: Bill, n_layers: int) -> Iterator[Advice]:
    layers = select_layers(settings.lens.layers, n_layers)
    prompts = bill.extent.prompts - bill.extent.failures
    if settings.generation is None and bill.extent.positions > prompts:
        yield _with("--positions last", bill, prompts, bill.taps, layers)
    if len(bill.taps) > 1 and "resid_post" in bill.taps:
        yield _with("--taps resid_post", bill, bill.extent.positions, ("resid_post",), layers)
    if len(fewer := select_layers(LAYERS, n_layers)) < len(layers):
        yield _with(f"--layers {LAYERS}", bill, bill.extent.positions, bill.taps, fewer)


def _with(option: str, bill: Bill, positions: int, taps: tuple[str, ...], layers: tuple[int, ...]) -> Advice:
    seconds = bill.seconds(positions, taps, layers)
    places = bill.places_with(positions, taps, layers)
    return Advice(option, places, bill.store_bytes(positions, taps, layers), None if seconds is None else seconds.expected)
