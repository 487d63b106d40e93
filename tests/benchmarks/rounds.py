"""Rounds in turns, and tables of them: raylens before and after every peer, so that what else the machine does falls on both."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.processes import PeerError, PeerProcess

FOUR = ["attn_out", "resid_mid", "mlp_out", "resid_post"]


@dataclass
class Timed:
    """The rounds of one peer.

    Attributes:
        seconds, cpu: of each round; CPU seconds of all its threads, of the peer's own process.
        whole: of each round, with loading the model where the peer has to do that each time.
        ratios: to raylens' rounds before and after.
        tokens: of a round.
        differing: places whose top-1 token is not raylens', of ``places``.
        apart: largest difference of the top-1 logprob; None where the peer gives none.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    tokens: int = 0
    differing: int = 0
    places: int = 0
    apart: float | None = None

    def add(self, answer: dict[str, Any]) -> float:
        """Take a round in; its seconds."""
        self.seconds.append(answer["seconds"])
        self.whole.append(answer["whole"])
        self.cpu.append(answer["cpu"])
        ids, _ = next(iter(answer["tops"].values()))
        self.tokens = len(ids[0])
        return self.seconds[-1]

    def compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Count the places that differ from raylens', of answers for the same texts and taps."""
        self.differing = self.places = 0
        for tap in wanted["tops"]:
            (ids, logprobs), (wanted_ids, wanted_logprobs) = found["tops"][tap], wanted["tops"][tap]
            pairs = list(zip(_flat(ids), _flat(wanted_ids), strict=True))
            self.places += len(pairs)
            self.differing += sum(one != other for one, other in pairs)
            if logprobs is not None:
                gaps = [abs(one - other) for one, other in zip(_flat(logprobs), _flat(wanted_logprobs), strict=True)]
                self.apart = max(self.apart or 0.0, *gaps)


def _flat(rows: list[list[Any]]) -> Iterable[Any]:
    return (value for row in rows for value in row)


def in_turns(base: PeerProcess, peers: Sequence[PeerProcess], texts: list[str], taps: list[str], rounds: int) -> list[Timed]:
    """Time all that can do it; the base is the first of the result. One small round of each, not counted, comes first.

    Raises:
        PeerError: a peer failed on the way.
    """
    base.ask(texts[:1], taps)
    peers = [peer for peer in peers if _warm(peer, texts[:1], taps)]
    own, others = Timed(base.name), [Timed(peer.name) for peer in peers]
    for _ in range(rounds):
        answer = base.ask(texts, taps)
        before = own.add(answer)
        for peer, timed in zip(peers, others, strict=True):
            found = peer.ask(texts, taps)
            seconds = timed.add(found)
            timed.compare(found, answer)
            after = own.add(base.ask(texts, taps))
            timed.ratios.append(2 * seconds / (before + after))
            before = after
    return [own, *others]


def _warm(peer: PeerProcess, texts: list[str], taps: list[str]) -> bool:
    """Whether the peer can; a line if not."""
    try:
        peer.ask(texts, taps)
    except PeerError as error:
        print(error, "\n")
        return False
    return True


def table(timed: Sequence[Timed]) -> None:
    """Print a line for each peer."""
    print(
        "| | rounds | median s | least to most | CPU s | tokens/s | it / raylens | least to most | other top-1 | logprob apart |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in timed:
        median = statistics.median(one.seconds)
        cells = [one.name, str(len(one.seconds)), f"{median:.2f}", _range(one.seconds), f"{statistics.median(one.cpu):.2f}"]
        cells += [f"{one.tokens / median:.1f}", *_compared(one)]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def _compared(one: Timed) -> list[str]:
    if not one.ratios:
        return ["1", "", "", ""]
    apart = "" if one.apart is None else f"{one.apart:.1e}"
    return [f"**{statistics.median(one.ratios):.2f}**", _range(one.ratios), f"{one.differing} of {one.places}", apart]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
