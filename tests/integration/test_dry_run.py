"""raylens run --dry-run against the run itself: exact counts, bytes within a quarter, and advice that can be taken."""

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import raylens
from raylens.scheduler.dry_run.advice import WORTH
from raylens.scheduler.dry_run.estimate import Estimate
from raylens.storage.ledger import Ledger
from raylens.storage.record import Record
from raylens.storage.taps import DEFAULT_TAPS
from raylens.storage.writer import COMMIT_SECONDS
from raylens.workers.settings import ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.command import raylens_command
from tests.running import Running
from tests.tiny import save_word_llama, sentences
from tests.waiting import HUNG, wait_until

pytestmark = pytest.mark.usefixtures("shared_ray")

#: Prompts of 1 to 40 words, more than are measured, and after them one that is empty and one that is too long.
PROMPTS = 150
#: Tokens generated.
STEPS = 5
#: What an estimate of bytes may be off by.
CLOSE = 0.25
#: Bytes of a commit with its tables, at most. How many there are goes by the clock, and they are most of what a small run stores.
A_COMMIT = 30_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus ``c.jsonl`` and the model ``model``, of six layers."""
    folder = tmp_path_factory.mktemp("dry")
    texts = [" ".join(text.split()[: 1 + number * number % 40]) for number, text in enumerate(sentences(PROMPTS, 40))]
    rows = [{"id": f"p{number}", "text": text, "topic": f"topic {number}"} for number, text in enumerate(texts)]
    rows += [{"id": "empty", "text": ""}, {"id": "long", "text": "call " * 600}]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_word_llama(folder / "model", layers=6)
    return folder


def run(place: Path, *options: str) -> Any:
    return raylens_command("run", "c.jsonl", "-m", "model", "-o", "st", *options, cwd=place)


def estimated(place: Path, *options: str) -> Estimate:
    done = run(place, *options, "--dry-run", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    return msgspec.convert(json.loads(done.stdout), Estimate)


def stored(place: Path, name: str) -> int:
    """Bytes of the files of a run's folder."""
    return sum(path.stat().st_size for path in (place / "st" / "runs" / name).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def every(place: Path) -> Estimate:
    """Of a run with all positions."""
    return estimated(place, "--positions", "all")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("all", ("--positions", "all")),
        (
            "some",
            (
                "--positions",
                "last:3",
                "--taps",
                "resid_pre,mlp_out",
                "--layers",
                "1-4",
                "-k",
                "3",
                "--heads",
                "2,5",
                "--track",
                "id:3",
            ),
        ),
        ("drawn", ("--generate", str(STEPS), "--temperature", "1", "--samples", "2")),
    ],
)
def test_counts_are_exact_and_bytes_close(place: Path, name: str, options: tuple[str, ...]) -> None:
    """Prompts, failures, tokens and places are those that the run then has; its folder is as large as said."""
    found = estimated(place, *options)
    assert not (place / "st" / "runs" / name).exists()
    done = run(place, *options, "--name", name)
    assert done.returncode == 3, done.stderr  # two prompts fail
    made = raylens.open(place / "st")[name]
    records = [outcome for outcome in made if isinstance(outcome, Record)]
    assert (found.prompts, found.failures) == (made.manifest.prompts, made.manifest.prompts - len(records))
    read = [len(record.token_ids) - (record.generated is not None) for record in records]
    ended = sum(STEPS - len(record.positions) for record in records if record.generated is not None)  # before the last step
    assert found.tokens == sum(read) + ended
    places = sum(tap.entropy.size for record in records for tap in record.taps.values())
    assert found.places == places + ended * sum(len(tap.layers) for tap in records[0].taps.values())
    commits = len(Ledger(made.folder).refresh()) + found.work_seconds.most / COMMIT_SECONDS
    assert found.store_bytes == pytest.approx(stored(place, name), rel=CLOSE, abs=A_COMMIT * commits)
    assert found.model_bytes == pytest.approx((place / "model" / "model.safetensors").stat().st_size, rel=CLOSE)


def test_ranges_and_memory(every: Estimate) -> None:
    """A range holds what is expected, and the start; an actor needs more than the weights, and no GPU here."""
    assert every.seconds is not None
    assert 0 < every.start_seconds < every.seconds.least <= every.seconds.expected <= every.seconds.most
    assert 0 < every.work_seconds.least <= every.work_seconds.expected <= every.work_seconds.most
    assert every.host_bytes > every.model_bytes > 0
    assert every.gpu_bytes == 0
    assert 0 < every.server_bytes <= every.store_bytes


def test_shards_are_those_of_the_scheduler(place: Path, every: Estimate) -> None:
    """Four for each actor, and the long prompt by itself."""
    assert (every.actors, every.shards) == (1, 5)
    found = estimated(place, "--actors", "2", "--taps", "resid_post", "--layers", "1")
    assert (found.actors, found.shards) == (2, 9)
    assert found.advice == []  # nothing is left to save


def test_advice_can_be_taken(place: Path, every: Estimate) -> None:
    """Each line names options of the command, with which a dry run tells the places that were promised."""
    assert {one.option for one in every.advice} == {"--positions last", "--taps resid_post", "--layers ::4"}
    for one in every.advice:
        assert one.places < every.places
        assert one.store_bytes <= (1 - WORTH) * every.store_bytes
        assert one.seconds is not None
    (one,) = (one for one in every.advice if one.option == "--layers ::4")
    taken = estimated(place, "--positions", "all", *one.option.split())
    assert one.places == taken.places
    assert one.store_bytes == pytest.approx(taken.store_bytes, rel=CLOSE)


def test_products_of_other_places(place: Path) -> None:
    """What advice scales by: running sums need two a layer and one for each beginning, a tap by itself one a layer."""
    worker = Worker(WorkerSettings(ModelSettings(str(place / "model"))))
    assert worker.products(DEFAULT_TAPS, tuple(range(6))) == 2 * 6 + 1
    assert worker.products(DEFAULT_TAPS, (0, 4)) == 2 * 2 + 2
    assert worker.products(("resid_post",), tuple(range(6))) == 6


def test_text_says_what_json_says(place: Path, every: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures in both forms, also where Ray is started for it; standard error tells how far it is."""
    monkeypatch.delenv("RAY_ADDRESS")
    done = run(place, "--positions", "all", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines, expected = done.stdout.splitlines(), every.lines()
    counts = [line for line in lines if line.split()[0] in {"prompts", "tokens", "places", "shards"}]
    assert counts == [line for line in expected if line.split()[0] in {"prompts", "tokens", "places", "shards"}]
    assert [line.split()[0] for line in lines] == [line.split()[0] for line in expected]
    (time,) = (line for line in lines if line.startswith("time"))
    assert re.fullmatch(r"time     about \d+:\d\d \(\d+:\d\d to \d+:\d\d\), of which \d+:\d\d to start and finish", time)
    assert "2 will fail" in lines[0]
    for stage in ("checking the corpus", "starting Ray", "tokenizing", "measuring"):
        assert stage in done.stderr


def test_no_time_of_other_machines(every: Estimate) -> None:
    """Where the actors are elsewhere, the time of the run and their GPUs' memory are said to be not known."""
    there = msgspec.structs.replace(every, seconds=None, gpu_bytes=None)
    text = "\n".join(there.lines())
    assert "time     not known: the actors are on other machines; as measured here, one actor would take about" in text
    assert "GPU memory not known here" in text


def test_a_corpus_that_fails(place: Path) -> None:
    """Nothing to measure is no error: the run would store failures."""
    done = raylens_command("run", "--text", "", "-m", "model", "--dry-run", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found = msgspec.convert(json.loads(done.stdout), Estimate)
    assert (found.prompts, found.failures, found.tokens, found.places) == (1, 1, 0, 0)
    assert found.work_seconds.most == 0
    assert found.advice == []


def test_a_model_without_weights_is_the_same_error(place: Path) -> None:
    """Found when the model loads: the message and the exit code of the run."""
    broken = place / "broken"
    broken.mkdir()
    for path in (place / "model").iterdir():
        (broken / path.name).write_bytes(b"" if path.suffix == ".safetensors" else path.read_bytes())
    dry, real = (raylens_command("run", "c.jsonl", "-m", "broken", *more, cwd=place) for more in (["--dry-run"], ["--name", "b"]))
    assert dry.returncode == real.returncode == 4
    errors = [[line for line in done.stderr.splitlines() if line.startswith("Error: ")] for done in (dry, real)]
    assert errors[0] == errors[1]
    assert "--model" in errors[0][0]


def test_bad_input_is_told_before_anything_loads(place: Path) -> None:
    """A corpus or option that cannot be used: nothing is started."""
    (place / "bad.jsonl").write_text('{"text": 5}\n')
    done = raylens_command("run", "bad.jsonl", "-m", "model", "--dry-run", cwd=place)
    assert done.returncode == 4
    assert "bad.jsonl:1" in done.stderr
    refused = run(place, "--positions", "first", "--dry-run")
    assert refused.returncode == 2
    for one in (done, refused):
        assert "starting Ray" not in one.stderr
        assert "loading the model" not in one.stderr


@pytest.mark.parametrize("stage", ["starting Ray", "loading the model", "measuring: 2 of"])
def test_ctrl_c_leaves_nothing(place: Path, tmp_path: Path, stage: str) -> None:
    """Exit code 130, no temporary folder of ours, no process, and nothing but two words on what was done."""
    log, corpus, temporary = tmp_path / "stopped.log", tmp_path / "long.txt", tmp_path / "temporary"
    corpus.write_text("\n".join(sentences(64, 400)))  # of which a dry run measures for seconds
    temporary.mkdir()
    command = ("run", str(corpus), "-m", str(place / "model"), "--positions", "all", "--dry-run", "--ray", "local")
    # Ray's own folder stays where its sockets' names are short enough
    with Running(log, *command, env={"RAY_TMPDIR": "/tmp"} | os.environ | {"TMPDIR": str(temporary)}) as running:
        wait_until(lambda: stage in log.read_text() or running.process.poll() is not None, stage)
        children = running.children("")
        running.stop()
        assert running.process.wait(timeout=HUNG) == 130
        assert running.stderr().splitlines()[-2:] == ["stopping; a second Ctrl-C stops at once", "stopped"]
    assert not list(temporary.glob("raylens-*"))
    _, alive = psutil.wait_procs(children, timeout=HUNG)
    assert not alive
