"""One opened run in several threads, as the site has it."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from raylens.storage.compaction import compact
from raylens.storage.run import Run
from raylens.storage.store import open_store
from tests.builders import commit_outcomes, make_record, make_run


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Threads take turns after microseconds, so that what may come between two steps does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("often_switched")
def test_all_threads_read_on_after_a_compaction(tmp_path: Path) -> None:
    """Each finds that segments have moved, and reads where they are now."""
    folder, _ = make_run(tmp_path, 200)
    for index in range(20):
        commit_outcomes(folder, make_record(index))
    for index in range(20, 40):
        commit_outcomes(folder, make_record(index))
        run = open_store(tmp_path)["demo"]
        ids = [entry.id for entry in run.entries]
        compact(folder)
        together = Barrier(8)

        def read(thread: int, run: Run = run, together: Barrier = together, ids: list[str] = ids) -> str:
            together.wait()
            return run[ids[thread]].id

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, range(8))) == ids[:8]
