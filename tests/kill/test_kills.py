"""SIGKILL of each process in the middle of a run: every prompt ends as exactly one record, equal to an undisturbed worker's."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

import raylens
from raylens.scheduler.corpus import Corpus, CorpusSettings
from raylens.storage.layout import RunFolder
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.kill.comparing import same_results, times_entered
from tests.running import Running, command_line
from tests.tiny import sentences
from tests.waiting import HUNG, wait_until

PROMPTS = 200
OPTIONS = ["--positions", "all", "--logprobs", "float32", "--actors", "2", "--batch-tokens", "64", "--name", "killed", "--json"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p/{n}", "text": text}) + "\n" for n, text in enumerate(sentences(PROMPTS, 24))))
    return path


class Killed(Running):
    """A ``raylens run`` whose processes can be killed."""

    def __init__(self, corpus: Path, model: Path, store: Path) -> None:
        log = store.parent / f"stderr-{id(self)}"
        super().__init__(log, "run", str(corpus), "-m", str(model), "-o", str(store), *OPTIONS)

    def until_midway(self) -> None:
        """Return once the ledger holds some prompts, but not all."""
        for event in self.events():
            if event["event"] == "progress":
                assert 0 < event["done"] < PROMPTS, "the run is over too soon to be killed in its middle"
                return
        pytest.fail(f"the run ended before its first commit: {self.stderr()}")

    def until_resubmitted(self) -> str:
        """Return once the driver says that it submits lost prompts again; its words."""
        for event in self.events():
            if event["event"] == "waiting" and "resubmitting" in str(event["text"]):
                return str(event["text"])
        pytest.fail(f"the run ended without missing anything: {self.stderr()}")

    def family(self, *words: str) -> list[psutil.Process]:
        """The living descendants whose command line holds any of the words."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if any(word in command_line(process) for word in words)]

    def kill(self, word: str) -> None:
        """SIGKILL one descendant, but not the shell that guards it."""
        found = [process for process in self.family(word) if "/bin/sh" not in command_line(process)]
        assert found, f"no process {word}"
        found[0].send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tiny: Path) -> dict[str, Record]:
    """What the model gives for each prompt, from a worker in this process, with neither Ray nor a server to disturb it."""
    worker = Worker(WorkerSettings(ModelSettings(str(tiny)), LensSettings(positions="all", logprobs="float32")))
    outcomes = worker.run(list(Corpus(CorpusSettings((str(corpus),))).prompts()))
    return {outcome.id: outcome for outcome in outcomes if isinstance(outcome, Record)}


def assert_each_prompt_once(store: Path) -> Run:
    """The ledger names each prompt exactly once, and each has a record."""
    assert times_entered(RunFolder(store / "runs" / "killed")) == Counter(range(PROMPTS))
    run = raylens.open(store)["killed"]
    assert run.counts()["records"] == PROMPTS
    return run


def assert_same_records(run: Run, undisturbed: dict[str, Record]) -> None:
    """The same results, up to what the float32 model itself differs by between batch shapes."""
    for record in run.records():
        assert same_results(record, undisturbed[record.id]), record.id


def test_run_mends_itself(tmp_path: Path, corpus: Path, tiny: Path, undisturbed: dict[str, Record]) -> None:
    """The run goes on without an actor, the writer and the server; the same command again finds nothing to do."""
    store = tmp_path / "store"
    with Killed(corpus, tiny, store) as running:
        running.until_midway()
        running.kill("ray::LensActor")
        told = running.until_resubmitted()  # so the run is not over: what the actor was at is computed again
        assert "an actor died" in told
        assert "memory" in told, "which is the most likely cause, and Ray does not say"
        running.kill("raylens.storage.writer")
        running.kill("valkey-server")
        assert running.finish() == 0, running.stderr()
    assert_same_records(assert_each_prompt_once(store), undisturbed)
    with Killed(corpus, tiny, store) as again:
        assert again.finish() == 0, again.stderr()
    assert_each_prompt_once(store)


def test_driver_is_killed_and_the_same_command_resumes(
    tmp_path: Path, corpus: Path, tiny: Path, undisturbed: dict[str, Record]
) -> None:
    """After SIGKILL of the driver its processes end; the same command does the rest, and nothing twice."""
    store = tmp_path / "store"
    with Killed(corpus, tiny, store) as running:
        running.until_midway()
        family = running.family("valkey", "raylens.storage.writer", "LensActor")
        assert len(family) >= 4, "server with its guard, writer and actors"
        os.kill(running.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=HUNG)
        assert not alive, f"outlived the driver: {alive}"
    stored = raylens.open(store)["killed"].counts()["records"]
    assert 0 < stored < PROMPTS
    with Killed(corpus, tiny, store) as again:
        first = next(event for event in again.events() if event["event"] == "start")
        assert first["done"] == stored
        assert again.finish() == 0, again.stderr()
    assert_same_records(assert_each_prompt_once(store), undisturbed)


@pytest.mark.parametrize("there", ["/gcs_server", "/raylet"])
def test_a_sigterm_while_ray_starts(tmp_path: Path, corpus: Path, tiny: Path, there: str) -> None:
    """Heard then too, whatever Ray does with it: the run ends as at any other time, and leaves nothing of Ray."""
    with Killed(corpus, tiny, tmp_path / "store") as running:
        wait_until(lambda: running.family(there) or running.process.poll() is not None, f"{there} has started")
        family = running.family("/gcs_server", "/raylet", "raylens.storage.writer")
        running.process.send_signal(signal.SIGTERM)
        assert running.finish() == 130, running.stderr()
        assert "To resume: raylens run" in running.stderr()
        assert not psutil.wait_procs(family, timeout=HUNG)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stop_drains_and_can_be_resumed(tmp_path: Path, corpus: Path, tiny: Path, number: signal.Signals) -> None:
    """The run ends with exit code 130 and the command that goes on; what was published is stored."""
    store = tmp_path / "store"
    with Killed(corpus, tiny, store) as running:
        running.until_midway()
        if number == signal.SIGINT:
            os.killpg(running.process.pid, number)  # as a terminal does: the whole group hears it
        else:
            running.process.send_signal(number)
        assert running.finish() == 130, running.stderr()
        assert "To resume: raylens run" in running.stderr()
    stored = raylens.open(store)["killed"].counts()["records"]
    assert 0 < stored < PROMPTS
    if number == signal.SIGINT:
        with Killed(corpus, tiny, store) as again:
            assert again.finish() == 0, again.stderr()
        assert_each_prompt_once(store)
