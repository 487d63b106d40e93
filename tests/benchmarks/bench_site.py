"""When pages of ``raylens view`` are first painted: ``python -m tests.benchmarks.bench_site``, some minutes.

The store has one run of 100,000 prompts, each with one position of SmolLM2-135M (four taps, 30 layers, k = 10), of 10,000 that
are shuffled and varied (stored.py). Painted is the browser's own first contentful paint, whole is when a page has loaded with all
pictures; medians, the server's caches warm, files in the page cache.
"""

import argparse
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from raylens.storage.record import Record
from tests.benchmarks.machine import load, processor
from tests.benchmarks.stored import LENGTH, generated, paragraphs, real_records, write_run
from tests.browser.viewing import viewing

PATHS = (
    "/",
    "/runs/run",
    "/runs/run/prompts",
    "/runs/run/prompts?page=50",
    "/runs/run/prompts?text=store&key=topic&value=topic+3",
    "/runs/run/prompt?id=prompt/{middle}",
    "/runs/run/tokens?token=id:253&rank=5",
    "/runs/run/aggregate",
)
_TIMES = """() => new Promise((found) => {
    const observer = new PerformanceObserver((list) => {
        for (const entry of list.getEntriesByName("first-contentful-paint")) {
            found([entry.startTime, performance.getEntriesByType("navigation")[0].loadEventEnd]);
        }
    });
    observer.observe({ type: "paint", buffered: true });
})"""


def last_places(prompts: int) -> Iterator[Record]:
    """Records of one position and 100 tokens of text each."""
    pool, index = list(generated(real_records(paragraphs(3_000))[0], 100 * LENGTH)), 0
    while index < prompts:
        record, position = pool[index % len(pool)], index % LENGTH
        part = slice(position, position + 1)
        taps = {
            name: dataclasses.replace(
                tap,
                ids=tap.ids[:, part],
                logprobs=tap.logprobs[:, part],
                logsumexp=tap.logsumexp[:, part],
                entropy=tap.entropy[:, part],
            )
            for name, tap in record.taps.items()
        }
        metadata = {"topic": f"topic {index % 7}"}
        yield dataclasses.replace(record, id=f"prompt/{index}", index=index, positions=[position], taps=taps, metadata=metadata)
        index += 1


def painted(browser: Browser, address: str) -> tuple[float, float]:
    """Seconds to the first paint, and to the whole page."""
    page = browser.new_page()
    page.goto(address, timeout=300_000)
    if "/prompt?" in address:
        page.wait_for_selector("html[data-ready]")
    first, whole = page.evaluate(_TIMES)
    page.close()
    return first / 1000, whole / 1000


def report(browser: Browser, address: str, path: str, rounds: int) -> None:
    """Measure an address and print its line."""
    painted(browser, address)
    times = [painted(browser, address) for _ in range(rounds)]
    first, whole = (statistics.median(column) for column in zip(*times, strict=True))
    most = max(one[0] for one in times)
    print(f"{path:60} painted {first:.2f} s (at most {most:.2f}), whole {whole:.2f} s", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    assert chromium is not None, "needs chromium"
    with tempfile.TemporaryDirectory() as folder:
        _, vocabulary = real_records(["a"])
        write_run(Path(folder), "run", options.prompts, last_places(options.prompts), vocabulary)
        print(f"{options.prompts:,} prompts; {processor()}; {load()}")
        site = viewing(Path(folder))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                for path in (path.format(middle=options.prompts // 2) for path in PATHS):
                    report(browser, site.url(path), path, options.rounds)
                browser.close()
        finally:
            site.stop()


if __name__ == "__main__":
    main()
