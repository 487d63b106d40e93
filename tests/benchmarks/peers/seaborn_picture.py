"""The picture of LogitLens4LLMs, made again from a description of it: a seaborn heatmap of layers and components by rank.

A job is one JSON line on stdin: "rows", [layer, component] each, first row at the top; "texts" and "percents", [rows, k];
"prompt", "predicted", "model"; "dpi"; and "tight" for matplotlib's cropping. The answer is one on stdout. It needs neither torch
nor raylens and runs in the peer's own environment.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns

CUT, WIDTH, ROW, LEAST = 10, 15, 0.5, 8


def draw(job: dict[str, Any], path: Path) -> None:
    """Draw and save, with the settings of the original: the font, a row of half an inch, 15 inches of width."""
    plt.rcParams["font.family"] = "DejaVu Sans"
    rows = job["rows"]
    figure, axes = plt.subplots(figsize=(WIDTH, max(LEAST, ROW * len(rows))))
    sns.heatmap(
        job["percents"],
        annot=[[_label(text) for text in row] for row in job["texts"]],
        fmt="",
        cmap="YlOrRd",
        cbar_kws={"label": "Probability (%)"},
        xticklabels=range(len(job["texts"][0])),
        yticklabels=[f"Layer {layer}\n{component}" for layer, component in rows],
        ax=axes,
    )
    for at, (one, other) in enumerate(pairwise(rows), start=1):
        if one[0] != other[0]:
            axes.axhline(y=at - 0.5, color="black", linewidth=1)
    axes.set_title(f"{job['model']}: all layers\nLayer Threshold: 3%")
    axes.set_xlabel("Token Rank (by probability)")
    axes.tick_params(axis="y", rotation=0)
    figure.text(0.5, -0.01, f"Prompt: {_label(job['prompt'], 200)}\nPredicted token: {_label(job['predicted'])}", ha="center")
    figure.savefig(path, dpi=job["dpi"], bbox_inches="tight" if job["tight"] else None)
    plt.close(figure)


def _label(text: str, cut: int = CUT) -> str:
    escaped = text.encode("unicode_escape").decode("ascii").replace("$", r"\$")
    return escaped if len(escaped) <= cut else escaped[:cut] + "..."


def main() -> None:
    """Answer jobs until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    versions = {name: importlib.metadata.version(name) for name in ("seaborn", "matplotlib")}
    print(json.dumps({"versions": versions}), file=answers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture.png")
        for line in sys.stdin:
            job = json.loads(line)
            start, start_cpu = time.perf_counter(), time.process_time()
            draw(job, path)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            print(json.dumps({"seconds": seconds, "cpu": cpu, "file": path.read_bytes().hex()}), file=answers)


if __name__ == "__main__":
    main()
