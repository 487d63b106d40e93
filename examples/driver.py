"""Submit a corpus, watch it, and ask the store: python examples/driver.py [CORPUS] [--model MODEL] [--store FOLDER] [--name NAME]

Runs on this machine, on a Ray cluster where RAY_ADDRESS names one, and inside `ray job submit` (examples/ray_job.sh). The same
call goes on where the last one ended, so a job that is killed is simply submitted again.
"""

import argparse
import threading
from pathlib import Path

import raylens

PROMPTS = [
    {"id": f"{country}-{verb}", "text": f"The capital of {country} {verb}", "country": country}
    for country in ("France", "Germany", "Italy", "Japan", "Egypt")
    for verb in ("is", "was")
]


def watch(store: Path, name: str, done: threading.Event) -> None:
    """Say now and then how far the run is, as any other process that sees the store could."""
    while not done.wait(5):
        if not (store / "runs" / name / "run.json").exists():  # its corpus is still being checked
            continue
        status = raylens.open(store)[name].status()
        actors = f", {status.driver.ready} actors at work" if status.driver else ""
        print(
            f"{status.state}: {status.stored} of {status.prompts} stored, {status.prompts_per_second:.1f} prompts/s{actors}",
            flush=True,
        )


def main() -> None:
    """Run, watch, and print what the store knows."""
    parser = argparse.ArgumentParser(description="Submit a corpus, watch it, and ask the store.")
    parser.add_argument("corpus", nargs="?", help="files of prompts; a few of this script's by default")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--store", type=Path, default=Path("raylens-store"))
    parser.add_argument("--name", default="capitals")
    parser.add_argument("--redis", default="embedded", help="a server that all machines of a cluster reach")
    parser.add_argument(
        "--writer", choices=["own", "external"], default="own", help="external where raylens writer stores the results"
    )
    options = parser.parse_args()

    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(options.store, options.name, done))
    watcher.start()
    try:
        run = raylens.run(
            options.corpus or PROMPTS,
            model=options.model,
            store=options.store,
            name=options.name,
            positions="last:3",
            stats="kl",
            redis=options.redis,
            writer=options.writer,
            quiet=True,
        )
    finally:
        done.set()
        watcher.join()

    counts = run.counts()
    print(f"{counts['records']} records, failures: {counts['failures'] or 'none'}")
    print("where predictions are decided:")
    for row in run.query("depth"):
        if row["stable"]:
            print(f"   {row['stable']} places at layer {row['layer']}, {row['stable_share']:.0%} up to there")
    print("what the last token's final prediction is:")
    for record in run.records():
        best = record.to_str_tokens(record.taps["resid_post"].ids[-1, -1, 0])
        print(f"   {record.text!r} -> {best!r}")


if __name__ == "__main__":
    main()
