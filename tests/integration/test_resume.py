"""The same command goes on after anything: on another machine, after a reboot, and not after --fresh."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import raylens
from raylens.scheduler import run
from raylens.scheduler.corpus import Corpus
from raylens.scheduler.progress import Progress
from raylens.scheduler.settings import RunSettings
from raylens.storage.layout import RunFolder
from raylens.storage.pulse import read_pulse
from raylens.storage.quarantine import Quarantine
from raylens.workers.settings import ModelSettings, WorkerSettings
from tests.builders import commit_outcomes, make_failure, make_run, same
from tests.command import raylens_command
from tests.running import Running
from tests.tiny import sentences
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = 12
#: A run that takes long enough to be stopped in its middle.
LONG = 240
SLOW = ("--positions", "all", "--batch-tokens", "64")


def started(output: str) -> dict[str, object]:
    """The event that says with what a run begins."""
    return next(event for event in map(json.loads, output.splitlines()) if event["event"] == "start")


@dataclass
class Stopped:
    """A run that Ctrl-C twice has ended midway, with what was seen of it."""

    place: Path
    prompts: int
    code: int
    stderr: str
    outlived: list[psutil.Process]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A place with model, corpus and a store, whose run ``r`` is complete."""
    place = tmp_path_factory.mktemp("first-machine")
    shutil.copytree(tiny, place / "model")
    (place / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(PROMPTS, 5)))
    done = raylens_command(*command(place))
    assert done.returncode == 0, done.stderr
    return place


def command(place: Path) -> list[str]:
    """A run of this place, by whole paths."""
    model, store = str(place / "model"), str(place / "st")
    return ["run", str(place / "c.jsonl"), "-m", model, "-o", store, "--name", "r", "--actors", "1", "--json"]


def test_fresh_begins_anew_and_deletes_nothing(made: Path, tmp_path: Path) -> None:
    """The old run is there under another name; a second fresh takes the next; without it the new run is resumed."""
    place = tmp_path / "machine"
    shutil.copytree(made, place)
    old = {outcome.id: outcome for outcome in raylens.open(place / "st")["r"]}
    done = raylens_command(*command(place), "--fresh")
    assert done.returncode == 0, done.stderr
    assert started(done.stdout)["done"] == 0
    assert "the earlier run r is now r.old-1" in done.stdout
    store = raylens.open(place / "st")
    assert sorted(store.names()) == ["r", "r.old-1"]
    assert {outcome.id for outcome in store["r"]} == old.keys()
    assert all(same(outcome, old[outcome.id]) for outcome in store["r.old-1"])
    assert store["r"].manifest.uid != store["r.old-1"].manifest.uid

    again = raylens_command(*command(place))
    assert started(again.stdout)["done"] == PROMPTS

    folder = RunFolder(place / "st" / "runs" / "r")
    for holding in (folder.lock, folder.writing):
        with holding():
            refused = raylens_command(*command(place), "--fresh")
        assert refused.returncode == 6
        assert "wait for it or stop it" in refused.stderr
    folder.manifest.write_text("damaged")
    assert raylens_command(*command(place), "--fresh").returncode == 0
    assert sorted(path.name for path in folder.root.parent.iterdir()) == ["r", "r.old-1", "r.old-2"]
    assert raylens_command("verify", str(place / "st"), "--run", "r").returncode == 0


def test_fresh_is_never_a_standing_setting(made: Path, tmp_path: Path) -> None:
    """In a file it is refused, in the environment it is not read: each resume would begin anew."""
    config = tmp_path / "c.toml"
    config.write_text("fresh = true")
    refused = raylens_command(*command(made), "--config", str(config))
    assert refused.returncode == 2
    assert "unknown option 'fresh'" in refused.stderr
    done = raylens_command(*command(made), env={"RAYLENS_RUN_FRESH": "1"})
    assert started(done.stdout)["done"] == PROMPTS


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Stopped]:
    """Ctrl-C twice, the second while the run waits for a writer that hangs; then its temporary files are gone."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny, place / "model")
    (place / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(LONG, 24)))
    # Ray's sockets want a short path
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        with Running(place / "log", *command(place), *SLOW, "--fresh", "--ray", "local", env=environment) as running:
            assert 0 < running.until("progress")["done"] < LONG
            (writer,) = running.children("raylens.storage.writer")
            family = [writer, *running.children("valkey-server"), *running.children("LensActor")]
            writer.suspend()
            running.stop()
            wait_until(lambda: "a second Ctrl-C stops at once" in running.stderr(), "the first Ctrl-C is heard")
            wait_until(lambda: not running.children("LensActor"), "it ends the actors and waits for the writer")
            running.stop()
            code = running.process.wait(timeout=60)  # the writer would have been waited for twice as long
            assert list(running.events())[-1].items() >= {"event": "stopped", "run": "r"}.items(), (
                "for whoever follows the events"
            )
            yield Stopped(
                place,
                raylens.open(place / "st")["r"].counts()["records"],
                code,
                running.stderr(),
                [process for process in family if process.is_running()],
            )


def test_a_disk_that_is_full_at_the_last_commit(tmp_path: Path, tiny: Path) -> None:
    """What was published and is not stored after all is no clean end, although the user stopped the run."""
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(LONG, 24)))
    run = RunFolder(tmp_path / "st" / "runs" / "r")

    def unstored() -> int:
        return pulse.unstored_prompts if (pulse := read_pulse(run)) else 0

    with Running(tmp_path / "log", *command(tmp_path), *SLOW) as running:
        running.until("progress")
        (writer,) = running.children("raylens.storage.writer")
        writer.suspend()
        wait_until(unstored, "results wait for the writer")
        running.stop()
        running.until("stage", "finishing")
        room = run.writer_log.stat().st_size + 1000  # for a line of its log, and not for a file of records
        writer.rlimit(psutil.RLIMIT_FSIZE, (room, room))
        writer.resume()
        assert running.finish() == 6
        error = running.stderr().splitlines()[-1]
    assert error.startswith("Error: the writer ended with code 6: cannot write: ")
    assert "File too large" in error
    assert error.endswith("; what is stored stays, and the same command resumes from there")
    assert 0 < raylens.open(tmp_path / "st")["r"].counts()["records"] < LONG


def test_ctrl_c_twice_ends_at_once(stopped: Stopped) -> None:
    """No process outlives it; what is stored stays, and the hint for resuming does not throw it away."""
    assert stopped.code == 130
    assert stopped.outlived == []
    assert 0 < stopped.prompts < LONG
    assert "To resume: raylens run" in stopped.stderr
    assert "--fresh" not in stopped.stderr


def test_the_hint_begins_anew_where_nothing_was_begun(made: Path, tmp_path: Path) -> None:
    """Ctrl-C while a corpus is waited for: without --fresh the same command would go on with the earlier run."""
    os.mkfifo(tmp_path / "c.jsonl")
    words = [str(tmp_path / "c.jsonl") if word.endswith("c.jsonl") else word for word in command(made)]
    with Running(tmp_path / "log", *words, "--fresh") as running:
        running.until("stage", "checking the corpus")
        running.stop()
        wait_until(lambda: "a second Ctrl-C stops at once" in running.stderr(), "the first Ctrl-C is heard")
        running.stop()
        assert running.finish() == 130
        assert running.stderr().splitlines()[-1].endswith("--json --fresh")
    assert raylens.open(made / "st").names() == ["r"]


def test_another_machine_resumes_a_copied_store(stopped: Stopped, tmp_path: Path) -> None:
    """Store, model and corpus at other paths, another home and temporary folder: nothing is computed twice.

    A reboot of the same machine leaves no more than that: the store's files, and neither server nor temporary files.
    """
    place = tmp_path / "second-machine"
    shutil.copytree(stopped.place, place)
    before = {outcome.id: outcome for outcome in raylens.open(stopped.place / "st")["r"]}
    (tmp_path / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as temporary:
        environment = {"HOME": str(tmp_path / "home"), "TMPDIR": temporary}
        done = raylens_command(*command(place), *SLOW, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert started(done.stdout)["done"] == stopped.prompts
    run = raylens.open(place / "st")["r"]
    assert run.counts()["records"] == LONG
    assert all(same(run[prompt], outcome) for prompt, outcome in before.items())
    assert raylens_command("verify", str(place / "st")).returncode == 0


class Passed(Progress):
    """Who hears what was read past; may wish to stop as soon as something was."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def passed(self, prompts: int) -> None:
        self.heard.append(prompts)


def test_what_is_stored_is_read_past_with_an_ear_for_the_user(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of millions it takes a minute, in which the run may be stopped, and says what it does."""
    monkeypatch.setattr(run, "PASSED_EVERY", 4)
    settings = RunSettings(WorkerSettings(ModelSettings(str(tiny))), tmp_path / "st", name="r", actors=1)
    corpus, folder = Corpus.from_rows(sentences(PROMPTS, 5)), RunFolder(tmp_path / "st" / "runs" / "r")
    assert not run.run_corpus(settings, corpus, Progress(), folder.manifest.exists).complete
    commit_outcomes(folder, *map(make_failure, range(PROMPTS - 1)))
    stopping = Passed()
    assert not run.run_corpus(settings, corpus, stopping, lambda: bool(stopping.heard)).complete
    assert stopping.heard == [4]
    going_on = Passed()
    assert run.run_corpus(settings, corpus, going_on).complete
    assert going_on.heard == [4, 8]
    assert raylens.open(tmp_path / "st")["r"].counts()["records"] == 1


def test_show_quarantine(tmp_path: Path) -> None:
    """Each refused entry with reason, size, time and prompt; JSON on request; the reason is shown safely."""
    folder, _ = make_run(tmp_path)
    quarantine = Quarantine(folder)
    quarantine.add("1700000000000-0", "checksum does not match", b"x" * 1234)
    quarantine.add("1700000000000-1", "head: \x1b]0;x\x07", b"y", 3)
    shown = raylens_command("show", "demo", "--quarantine", "--store", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    header, first, second = shown.stdout.splitlines()
    assert header.split() == ["entry", "refused", "prompt", "bytes", "reason"]
    assert first.startswith("1700000000000-0")
    assert first.endswith("?       1,234  checksum does not match")
    assert "\x1b" not in second
    listed = json.loads(raylens_command("show", "demo", "--quarantine", "--json", "--store", str(tmp_path)).stdout)
    assert [(one["entry"], one["index"], one["size"]) for one in listed] == [
        ("1700000000000-0", None, 1234), ("1700000000000-1", 3, 1),
    ]  # fmt: skip
    assert all(one["time"].endswith("+00:00") for one in listed)
    assert raylens_command("show", "demo/p", "--quarantine", "--store", str(tmp_path)).returncode == 2
