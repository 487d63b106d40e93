"""raylens' rank picture against seaborn's of the same: ``python -m tests.benchmarks.bench_pictures``; see docs/benchmarks.md.

Both processes stay alive and take turns. Every round draws another record, so that no token's outline is there from the last one.
"""

import argparse
import itertools
import statistics
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from raylens.storage.labels import token_label
from raylens.storage.plots import render
from raylens.storage.plots.rank import RankPicture, rank
from raylens.storage.plots.request import Request
from raylens.storage.record import Record, TapLens
from raylens.storage.vocabulary import Vocabulary
from tests.benchmarks.machine import load, processor
from tests.benchmarks.processes import ROOT, PeerError, PeerProcess
from tests.benchmarks.rounds import FOUR

VOCABULARY, K = 50_000, 10
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
#: How the seaborn picture is saved: as LogitLens4LLMs does, then with as many dots an inch as ours and without cropping.
WAYS = (("as the seed draws it: 300 dpi, cropped", 300, True), ("at our 150 dpi, not cropped", 150, False))


def made_up(seed: int, layers: int) -> tuple[Record, Vocabulary]:
    """A record of one position and a vocabulary, both of chance: words of one to ten letters, three of four with a space."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(LETTERS, size)) for size in rng.integers(1, 11, VOCABULARY)]
    vocabulary = [f"{' ' if number % 4 else ''}{word}".encode() for number, word in enumerate(words)]
    taps = {}
    for tap in FOUR:
        shape = (layers, 1, K)
        logprobs = np.log(-np.sort(-rng.dirichlet(np.full(K + 1, 0.3), shape[:2]), axis=2)[:, :, :K] + 1e-9)
        nothing = np.zeros(shape[:2], np.float32)
        ids = rng.integers(0, VOCABULARY, shape, dtype=np.uint32)
        taps[tap] = TapLens(tuple(range(layers)), ids, logprobs.astype(np.float16), nothing, nothing)
    read = rng.integers(0, VOCABULARY, 12).tolist()
    return Record("a prompt", 0, "", read, [], [len(read) - 1], list(range(layers)), taps), vocabulary


def job_of(picture: RankPicture, vocabulary: Vocabulary, record: Record, dpi: int, tight: bool) -> dict[str, object]:
    """The same content for the other side: rows from the top down, tokens as text, whole percents."""
    return {
        "rows": picture.rows[::-1],
        "texts": [[text.replace("·", " ") for text in row] for row in picture.texts[::-1]],
        "percents": np.floor(picture.values[::-1] * 100).tolist(),
        "prompt": "".join(token_label(vocabulary, token) for token in record.token_ids),
        "predicted": picture.texts[-1][0],
        "model": "made-up",
        "dpi": dpi,
        "tight": tight,
    }


def compare(peer: PeerProcess, layers: int, rounds: int) -> None:
    """Take turns, and print a line for each way; the first round is not counted."""
    request = Request("made-up")
    seeds = itertools.count()
    for name, dpi, tight in WAYS:
        ours, theirs, sizes = [], [], ("", "")
        for _ in range(rounds + 1):
            record, vocabulary = made_up(next(seeds), layers)
            job = job_of(rank(record, vocabulary, request), vocabulary, record, dpi, tight)
            start = time.perf_counter()
            (data,) = render(record, "rank", "png", request, vocabulary=vocabulary)
            ours.append(time.perf_counter() - start)
            answer = peer.do(job)
            theirs.append(answer["seconds"])
            sizes = _size(data), _size(bytes.fromhex(answer["file"]))
        ratios = [one / other for one, other in zip(theirs[1:], ours[1:], strict=True)]
        seconds = f"{statistics.median(ours[1:]):.2f} | {statistics.median(theirs[1:]):.2f}"
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(f"| {name} | {seconds} | **{statistics.median(ratios):.1f}** | {spread} | {sizes[0]} | {sizes[1]} |", flush=True)


def _size(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return f"{image.width} x {image.height}, {len(data) / 1e6:.1f} MB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="the folder given to install_peers.sh")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    python = given.peers / "seaborn" / "bin" / "python"
    Image.MAX_IMAGE_PIXELS = None  # the other side's pictures are that large
    try:
        if not python.exists():
            raise PeerError(f"seaborn: not measured: no {python}; run tests/benchmarks/install_peers.sh {given.peers}")
        with PeerProcess("seaborn", "seaborn_picture", str(python), "none") as peer:
            versions = ", ".join(f"{package} {version}" for package, version in peer.about["versions"].items())
            print(f"{processor()}; {load()}; {versions}; {given.layers} layers, four taps, k={K}, {given.rounds} rounds\n")
            print("| seaborn's picture | raylens s | seaborn s | seaborn / raylens | least to most | raylens' | seaborn's |")
            print("|---|---|---|---|---|---|---|")
            compare(peer, given.layers, given.rounds)
    except PeerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
