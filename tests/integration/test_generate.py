"""raylens run --generate: the same texts whatever the actors and batches, each delivered once, and read like any record."""

import json
import re
from pathlib import Path

import pytest
import torch

import raylens
from raylens.storage.record import Failure, Record
from raylens.storage.run import Run
from raylens.workers.model import load_model
from raylens.workers.settings import ModelSettings
from tests.builders import same
from tests.command import raylens_command
from tests.running import Running
from tests.tiny import sentences

pytestmark = pytest.mark.usefixtures("shared_ray")

DRAWN = ("--generate", "6", "--temperature", "1.5", "--top-p", "0.9", "--seed", "3", "--samples", "2")
PROMPTS = 7
#: Of a run that is broken in its middle.
LONG = 120


def corpus(path: Path, count: int, *, backwards: bool = False) -> Path:
    """Prompts of 3 to 9 words."""
    rows = [
        {"id": f"p{number}", "text": " ".join(text.split()[: 3 + number % 7])} for number, text in enumerate(sentences(count, 9))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in (reversed(rows) if backwards else rows)))
    return path


def command(place: Path, prompts: Path, tiny: Path, *options: str) -> list[str]:
    return ["run", str(prompts), "-m", str(tiny), "-o", str(place / "st"), "--logprobs", "float32", "--json", *options]


def records(run: Run) -> dict[str, Record]:
    found = {outcome.id: outcome for outcome in run}
    assert not any(isinstance(outcome, Failure) for outcome in found.values())
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A place whose store has a run ``one`` of one actor, drawn."""
    place = tmp_path_factory.mktemp("made")
    done = raylens_command(*command(place, corpus(place / "c.jsonl", PROMPTS), tiny, *DRAWN, "--name", "one", "--actors", "1"))
    assert done.returncode == 0, done.stderr
    return place


def test_each_sample_is_a_record_of_its_own(made: Path) -> None:
    """Ids and indexes of the samples, texts that differ, and what every record of a generation says."""
    run = raylens.open(made / "st")["one"]
    found = records(run)
    assert [record.id for record in run.records()] == [f"p{number}#{sample}" for number in range(PROMPTS) for sample in (1, 2)]
    assert [record.index for record in run.records()] == list(range(2 * PROMPTS))
    assert run.manifest.identity["generation"] == {
        "tokens": 6,
        "temperature": 1.5,
        "top_p": 0.9,
        "top_k": None,
        "seed": 3,
        "samples": 2,
    }
    assert run.manifest.identity["corpus"]["prompts"] == PROMPTS
    assert "prompts of different lengths together" in run.certificate["generation"]["steps"]
    for number in range(PROMPTS):
        one, other = (found[f"p{number}#{sample}"] for sample in (1, 2))
        assert one.generated is not None
        assert other.generated is not None
        assert (one.generated.sample, other.generated.sample) == (1, 2)
        assert one.token_ids[: one.generated.start] == other.token_ids[: one.generated.start]
        assert one.token_ids != other.token_ids
        assert one.text.endswith(one.generated.text)
    assert raylens_command("verify", str(made / "st")).returncode == 0


def test_actors_batches_and_order_do_not_change_the_text(made: Path, tiny: Path) -> None:
    """Two actors, small batches and a corpus backwards give each sample the text it had."""
    prompts = corpus(made / "backwards.jsonl", PROMPTS, backwards=True)
    options = (*DRAWN, "--name", "two", "--actors", "2", "--batch-tokens", "30")
    done = raylens_command(*command(made, prompts, tiny, *options))
    assert done.returncode == 0, done.stderr
    one, two = (records(raylens.open(made / "st")[name]) for name in ("one", "two"))
    assert {name: record.token_ids for name, record in one.items()} == {name: record.token_ids for name, record in two.items()}
    assert len({record.text for record in one.values()}) == 2 * PROMPTS


def test_a_killed_actor_and_a_stop_lose_nothing(made: Path, tiny: Path) -> None:
    """An actor killed in mid-generation, then Ctrl-C, then the same command: each record once, with the text it has unbroken."""
    prompts = corpus(made / "long.jsonl", LONG)
    options = ("--generate", "12", "--temperature", "1.0", "--actors", "1")
    broken = command(made, prompts, tiny, *options, "--ray", "local", "--name", "broken")  # whose actor is a child
    with Running(made / "log", *broken, "--batch-tokens", "45") as running:
        assert 0 < running.until("progress")["done"] < LONG
        (actor,) = running.children("ray::LensActor")
        actor.kill()
        running.until("waiting", "an actor died")
        running.until("progress")
        running.stop()
        assert running.finish() == 130
    stored = len(records(raylens.open(made / "st")["broken"]))
    assert 0 < stored < LONG
    done = raylens_command(*broken)
    assert done.returncode == 0, done.stderr
    assert next(event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "start")["done"] == stored
    whole = raylens_command(*command(made, prompts, tiny, *options, "--name", "whole"))
    assert whole.returncode == 0, whole.stderr
    mended, unbroken = (records(raylens.open(made / "st")[name]) for name in ("broken", "whole"))
    assert {name: record.token_ids for name, record in mended.items()} == {
        name: record.token_ids for name, record in unbroken.items()
    }
    assert len(mended) == LONG


def test_other_settings_are_refused(made: Path, tiny: Path) -> None:
    """Another seed is another run; options that do not go together are refused before anything is read."""
    changed = [*DRAWN[:6], "--seed", "4", "--samples", "2"]
    refused = raylens_command(*command(made, made / "c.jsonl", tiny, *changed, "--name", "one"))
    assert refused.returncode == 2
    assert "generation.seed: 3 -> 4" in refused.stderr
    plain = raylens_command(*command(made, made / "c.jsonl", tiny, "--name", "one"))
    assert plain.returncode == 2
    assert "generation.tokens: 6 -> None" in plain.stderr
    for options, words in (
        (("--samples", "2"), "--samples 2: applies only to generation; give --generate N too"),
        (("--generate", "5", "--top-p", "0.9"), "--top-p: nothing is sampled at temperature 0; give --temperature too"),
        (("--generate", "5", "--positions", "all"), "--positions all: with --generate, the generated steps are lensed"),
        (("--generate", "512"), "--generate 512: the model reads 512 tokens, including the prompt's"),
    ):
        done = raylens_command(*command(made, made / "c.jsonl", tiny, *options))
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_dry_run_counts_the_steps(made: Path, tiny: Path) -> None:
    """Tokens, places and prompts of an estimate are those that the run then has."""
    done = raylens_command(*command(made, made / "c.jsonl", tiny, *DRAWN, "--dry-run"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    run = raylens.open(made / "st")["one"]
    assert found["prompts"] == 2 * PROMPTS
    assert found["places"] == sum(len(record.positions) * 2 * 4 for record in run.records())
    assert found["tokens"] == sum(len(record.token_ids) - 1 for record in run.records())


def test_show_prints_the_steps(made: Path) -> None:
    """Each step with its token, the text so far and the layers; one position as for any record."""
    shown = raylens_command("show", "one/p2#1", "--store", str(made / "st"))
    assert shown.returncode == 0, shown.stderr
    record = raylens.open(made / "st")["one"]["p2#1"]
    assert isinstance(record, Record)
    assert record.generated is not None
    assert f"prompt p2#1, {record.generated.start} tokens, then 6 generated: the limit was reached" in shown.stdout
    assert re.findall(r"^step (\d+), after position (\d+)", shown.stdout, re.MULTILINE) == [
        (str(number + 1), str(position)) for number, position in enumerate(record.positions)
    ]
    one = raylens_command("show", "one/p2#1", "--store", str(made / "st"), "--position", str(record.positions[2]))
    assert f"after position {record.positions[2]}" in one.stdout
    for address, options in (("one", ()), ("one/p2#1", ("--position", "4"))):
        refused = raylens_command("show", address, "--store", str(made / "st"), "--important-threshold", "5", *options)
        assert refused.returncode == 2
        assert "--important-threshold" in refused.stderr


@pytest.mark.parametrize("kind", ["grid", "rank", "trajectory"])
def test_pictures_of_a_step(made: Path, kind: str) -> None:
    """Every kind of picture draws a step like any position, and says what was generated."""
    record = raylens.open(made / "st")["one"]["p3#2"]
    assert isinstance(record, Record)
    chosen = ("plot", "one/p3#2", "--kind", kind, "--positions", str(record.positions[1]), "-o", str(made / f"{kind}.svg"))
    done = raylens_command(*chosen, "--store", str(made / "st"))
    assert done.returncode == 0, done.stderr
    text = (made / f"{kind}.svg").read_text()
    assert record.generated is not None
    assert f"generated: {record.generated.start} to {len(record.token_ids) - 1}" in text


def test_exports_and_queries(made: Path) -> None:
    """A prompt's steps as the seed's files, its page, and a query over the run."""
    store = ("--store", str(made / "st"))
    done = raylens_command("export", "one/p0#1", "--format", "logitlens4llms", "-o", str(made / "seed"), *store)
    assert done.returncode == 0, done.stderr
    steps = json.loads((made / "seed" / "all_layers.json").read_text())
    record = raylens.open(made / "st")["one"]["p0#1"]
    assert isinstance(record, Record)
    assert list(steps) == [f"step_{number}" for number in range(6)]
    assert steps["step_5"]["input_text"] + steps["step_5"]["predicted_token"] == record.text
    page = raylens_command("export", "one/p0#1", "--format", "html", "-o", str(made / "page.html"), *store)
    assert page.returncode == 0, page.stderr
    counting = "SELECT count(*) AS steps FROM lens WHERE tap = 'attn_out' AND layer = 0"
    asked = raylens_command("sql", counting, "--run", "one", "--json", *store)
    assert '"steps":84' in asked.stdout.replace(" ", ""), asked.stdout + asked.stderr


def test_from_python(made: Path, tiny: Path) -> None:
    """raylens.run gives the same records as the command; raylens.lens is one text, greedy as transformers writes it."""
    rows = [json.loads(line) for line in (made / "c.jsonl").read_text().splitlines()]
    run = raylens.run(
        rows,
        model=str(tiny),
        store=made / "python",
        logprobs="float32",
        generate=6,
        temperature=1.5,
        top_p=0.9,
        seed=3,
        samples=2,
        quiet=True,
    )
    by_command = records(raylens.open(made / "st")["one"])
    for record in run.records():
        assert record.token_ids == by_command[record.id].token_ids
    text = rows[0]["text"]
    record = raylens.lens(text, model=str(tiny), generate=8)
    model, tokenizer = load_model(ModelSettings(str(tiny)))
    ids = tokenizer(text, return_tensors="pt").to(model.device)
    with torch.no_grad():
        written = model.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=0)[0].tolist()
    assert record.token_ids == written
    assert same(record, raylens.lens(text, model=str(tiny), generate=8))
    with pytest.raises(raylens.RaylensError, match=r"^seed: .*give temperature too"):
        raylens.lens(text, model=str(tiny), generate=8, seed=1)


def test_lens_command_generates(tiny: Path) -> None:
    """raylens lens TEXT --generate N prints the grid of the steps, or the record."""
    done = raylens_command("lens", "call me", "-m", str(tiny), "--generate", "3", "--temperature", "1", "--seed", "2", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["generated"]["logprobs"]) == len(record["positions"]) == 3
    grid = raylens_command("lens", "call me", "-m", str(tiny), "--generate", "3", "--temperature", "1", "--seed", "2")
    assert grid.returncode == 0, grid.stderr
    assert all(f" {position}" in grid.stdout.splitlines()[-1] for position in record["positions"])
