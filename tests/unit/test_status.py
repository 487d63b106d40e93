"""How far a run is, by its files, while others change them."""

import shutil
import time
from pathlib import Path

import pytest

from raylens.storage.compaction import compact
from raylens.storage.errors import StoreError
from raylens.storage.pulse import FORMAT, Pulse, write_pulse
from raylens.storage.status import RATE_SECONDS, status
from raylens.storage.tally import Tally
from tests.builders import commit_outcomes, make_failure, make_record, make_run


def test_a_run_that_is_moved_aside_while_it_is_watched(tmp_path: Path) -> None:
    """As ``raylens run --fresh`` does: what was followed of it is no longer there, which is told as of any damaged run."""
    folder, _ = make_run(tmp_path)
    commit_outcomes(folder, make_record(0))
    tally = Tally(folder)
    assert status(folder, tally).stored == 1
    shutil.move(folder.root, folder.root.with_name("demo.old-1"))
    make_run(tmp_path)
    with pytest.raises(StoreError, match=r"000000000\.json: No such file"):
        status(folder, tally)


def test_what_is_stored_again_counts_once(tmp_path: Path) -> None:
    """As where a compaction was killed, whose merged segment has prompts of earlier commits: neither counts nor rates double."""
    folder, _ = make_run(tmp_path, prompts=6)
    commit_outcomes(folder, make_record(0), make_failure(1), make_failure(2))
    commit_outcomes(folder, make_record(0), make_failure(1), make_record(3))
    write_pulse(folder, Pulse(FORMAT, "elsewhere", 1, time.time(), 1, 1, 0, 0, 0, 0, 0, ""))
    found = status(folder)
    assert (found.state, found.stored, found.failures, found.tokens) == ("running", 4, {"model": 2}, 8)
    assert found.prompts_per_second == pytest.approx(4 / RATE_SECONDS)
    assert found.tokens_per_second == pytest.approx(8 / RATE_SECONDS)


def test_a_run_that_was_compacted_is_no_faster(tmp_path: Path) -> None:
    """Its commits were written just now, all of them at once; nobody is at work on it."""
    folder, _ = make_run(tmp_path, prompts=2)
    for index in range(2):
        commit_outcomes(folder, make_record(index))
    compact(folder)
    found = status(folder)
    assert (found.state, found.stored, found.prompts_per_second, found.tokens_per_second) == ("complete", 2, 0.0, 0.0)
