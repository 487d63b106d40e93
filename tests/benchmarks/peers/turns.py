"""What each peer's process does: load a model, then one round for every job that it reads.

A job is one JSON line on stdin, {"texts", "taps"}; the answer is one on stdout. What the peer's libraries print goes to stderr.
Needs only torch: it runs in the peer's own environment.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

#: Tap -> top-1 tokens and, where the peer gives them, their logprobs, each [layers, N]: text after text, all positions.
Tops = dict[str, tuple[list[list[Any]], list[list[float]] | None]]
#: Tokens kept at each place.
K = int(os.environ.get("RAYLENS_BENCH_TOP_K", "10"))


class Peer(Protocol):
    """One way to read a model out.

    Attributes:
        packages: whose versions are told.
    """

    packages: tuple[str, ...]

    def lens(self, texts: list[str], taps: list[str]) -> Any:
        """The work that is timed: the K best tokens of each tap, layer, text and position."""

    def tops(self, found: Any, taps: list[str]) -> Tops:
        """What is compared, from the result of ``lens``; not timed."""


def serve(load: Callable[[str], Peer]) -> None:
    """Answer jobs until stdin ends. The model's folder is the only argument; loading is not timed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = load(sys.argv[1])
    versions = {name: importlib.metadata.version(name) for name in peer.packages}
    print(json.dumps({"versions": versions, "threads": torch.get_num_threads()}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        start, start_cpu = time.time(), time.process_time()
        found = peer.lens(job["texts"], job["taps"])
        end, end_cpu = time.time(), time.process_time()
        # a peer that has to load the model in each round says since when it was there
        ready = max(start, getattr(found, "ready", start))
        timing = {"seconds": end - ready, "whole": end - start, "cpu": end_cpu - start_cpu}
        print(json.dumps({**timing, "tops": peer.tops(found, job["taps"])}), file=answers)
