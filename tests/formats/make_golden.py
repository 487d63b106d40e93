"""Makes a golden store: ``python -m tests.formats.make_golden 1`` writes tests/formats/store-1 and what is in it, once a version.

Real runs of a model of two layers and 256 words, each of a sort that readers must know:

- ``plain``: as the writer leaves it, tables and all; a prompt that is too long and one without tokens fail
- ``full``: all statistics, tracked tokens, float32 logprobs, ids that are odd
- ``compacted``: two segments made one
- ``untabled``: as before there were tables
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import orjson

import raylens
from raylens.storage.compaction import compact
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.run import Run
from raylens.storage.store import Store
from raylens.storage.verify import examine
from tests.builders import commit_outcomes
from tests.formats.contents import contents
from tests.tiny import save_word_llama, sentences

FOLDER = Path(__file__).parent
ODD = ["a/b.txt", "..", "👩\u200d🔬 é", "x" * 1000]


def make(store: Path, model: str) -> None:
    """The four runs."""
    texts: list[Any] = [{"text": text, "kind": f"kind {number % 2}"} for number, text in enumerate(sentences(4, 5))]
    common = {"model": model, "store": store, "positions": "all", "top_k": 3, "actors": 1, "max_tokens": 12, "on_long": "error"}
    raylens.run([*texts, {"text": ""}, {"text": " ".join(["me"] * 30)}], name="plain", **common)
    odd = [{"id": one, "text": text} for one, text in zip(ODD, sentences(4, 4), strict=True)]
    raylens.run(odd, name="full", stats="kl,next_logprob,next_rank", track=["me", "sail"], logprobs="float32", **common)
    raylens.run(texts, name="untabled", **common)
    shutil.rmtree(store / "runs" / "untabled" / "tables")
    make_compacted(store)


def make_compacted(store: Path) -> None:
    """What ``plain`` holds, in two commits, merged: a run this small makes one."""
    plain = Store(store)["plain"]
    folder = RunFolder(runs_folder(store) / "compacted")
    folder.create()
    for name in ("certificate.json", "vocabulary.msgpack.zst"):
        shutil.copy(plain.folder.root / name, folder.root / name)
    folder.manifest.write_bytes(msgspec.json.encode(msgspec.structs.replace(plain.manifest, name="compacted")))
    outcomes = list(plain)
    commit_outcomes(folder, *outcomes[:3])
    commit_outcomes(folder, *outcomes[3:])
    compact(folder)


def tidy(run: Run) -> None:
    """Without what names the machine, and without locks."""
    for name in ("lock", "writer.lock", "writer.log"):
        (run.folder.root / name).unlink(missing_ok=True)
    value = orjson.loads(run.folder.manifest.read_bytes())
    value["sources"] = {"model": "model", "corpus": "rows"}
    run.folder.manifest.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def main() -> None:
    """Write the store and its contents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="a number for the store, never used before")
    store = FOLDER / f"store-{parser.parse_args().version}"
    with tempfile.TemporaryDirectory() as place:
        make(store, str(save_word_llama(Path(place) / "model")))
    expected = {}
    for run in Store(store):
        tidy(run)
        expected[run.name] = contents(Store(store)[run.name])
        print(run.name, [one.problem for one in examine(run.folder).damage])
    store.with_suffix(".json").write_bytes(orjson.dumps(expected))


if __name__ == "__main__":
    main()
