"""raylens' rank picture against seaborn's of the same: ``python -m tests.benchmarks.bench_pictures``; see docs/benchmarks.md.

Both processes stay alive and take turns. Every round draws the next prompt's record, as when a run is drawn.
"""

import argparse
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raylens.storage.labels import token_label
from raylens.storage.plots import render
from raylens.storage.plots.rank import RankPicture, rank
from raylens.storage.plots.request import Request
from raylens.storage.record import Record
from raylens.storage.vocabulary import Vocabulary
from raylens.workers.api import loaded, read
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from tests.benchmarks.corpus import PROMPTS
from tests.benchmarks.machine import load, processor
from tests.benchmarks.processes import ROOT, PeerError, PeerProcess

#: How the seaborn picture is saved: as LogitLens4LLMs does, then with as many dots an inch as ours and without cropping.
WAYS = (("as the seed draws it: 300 dpi, cropped", 300, True), ("at our 150 dpi, not cropped", 150, False))


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


def compare(peer: PeerProcess, records: list[Record], vocabulary: Vocabulary) -> None:
    """Take turns over the records, and print a line for each way; the first record of each is not counted."""
    request = Request("demo")
    turns = len(records) // len(WAYS)
    for at, (name, dpi, tight) in enumerate(WAYS):
        ours, theirs, sizes = [], [], ("", "")
        for record in records[at * turns : (at + 1) * turns]:
            job = job_of(rank(record, vocabulary, request), vocabulary, record, dpi, tight)
            start, start_cpu = time.perf_counter(), time.process_time()
            (data,) = render(record, "rank", "png", request, vocabulary=vocabulary)
            ours.append((time.perf_counter() - start, time.process_time() - start_cpu))
            answer = peer.do(job)
            theirs.append((answer["seconds"], answer["cpu"]))
            sizes = _size(data), _size(bytes.fromhex(answer["file"]))
        _print(name, np.array(ours[1:]), np.array(theirs[1:]), sizes)


def _print(name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], sizes: tuple[str, str]) -> None:
    """A line of a table, from [rounds, 2] seconds and CPU seconds of either side."""
    ratios, medians = theirs / ours, (np.median(ours, axis=0), np.median(theirs, axis=0))
    cells = [name, *(f"{median[0]:.2f} ({median[1]:.2f})" for median in medians)]
    cells += [f"**{np.median(ratios[:, 0]):.1f}**, {ratios[:, 0].min():.1f} to {ratios[:, 0].max():.1f}"]
    cells += [f"{np.median(ratios[:, 1]):.1f}, {ratios[:, 1].min():.1f} to {ratios[:, 1].max():.1f}", *sizes]
    print(f"| {' | '.join(cells)} |", flush=True)


def _size(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return f"{image.width} x {image.height}, {len(data) / 1e6:.1f} MB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="the folder given to install_peers.sh")
    parser.add_argument("--model", default="demo", help="as of raylens run")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    python = given.peers / "seaborn" / "bin" / "python"
    Image.MAX_IMAGE_PIXELS = None  # the other side's pictures are that large
    try:
        if not python.exists():
            raise PeerError(f"seaborn: not measured: no {python}; run tests/benchmarks/install_peers.sh {given.peers}")
        with PeerProcess("seaborn", "seaborn_picture", str(python), "none") as peer:
            versions = ", ".join(f"{package} {version}" for package, version in peer.about["versions"].items())
            worker = loaded(WorkerSettings(ModelSettings(given.model), LensSettings(positions="last")))
            records = [read(worker, text) for text in PROMPTS[: len(WAYS) * (given.rounds + 1)]]
            print(f"{processor()}; {load()}; {versions}; {given.model}, {len(records[0].layers)} layers, four taps, k=10\n")
            print("| seaborn's picture | raylens s (CPU) | seaborn s (CPU) | seaborn / raylens | of CPU | raylens' | seaborn's |")
            print("|---|---|---|---|---|---|---|")
            compare(peer, records, worker.vocabulary)
    except PeerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
