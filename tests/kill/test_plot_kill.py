"""``raylens plot --all`` killed while its processes draw."""

from pathlib import Path

import psutil

from tests.builders import commit_outcomes, make_record, make_run
from tests.running import Running
from tests.waiting import HUNG, wait_until


def test_no_process_outlives_the_command(tmp_path: Path) -> None:
    """What could not end them ends them: they see that it is gone."""
    folder, _ = make_run(tmp_path / "store", 400)
    commit_outcomes(folder, *(make_record(index, tokens=20) for index in range(400)))
    pictures = tmp_path / "pictures"
    with Running(tmp_path / "log", "plot", "demo", "--all", "-o", str(pictures), "-s", str(tmp_path / "store")) as running:
        wait_until(lambda: pictures.exists() and any(pictures.iterdir()), "the first picture is there")
        children = running.children("multiprocessing")
        assert len(children) > 1
        running.process.kill()
        _, alive = psutil.wait_procs(children, timeout=HUNG)
        assert not alive
    assert len(list(pictures.iterdir())) < 400
