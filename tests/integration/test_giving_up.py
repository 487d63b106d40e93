"""A run that cannot go on ends with a reason instead of trying for ever, and goes on once the reason is gone."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from transformers import AutoTokenizer

import raylens
from raylens.scheduler import dispatch, placing, pool
from raylens.scheduler.cluster import cluster
from raylens.storage.layout import RunFolder
from raylens.storage.pulse import read_pulse
from tests.tiny import save_word_llama
from tests.waiting import wait_until

# A model with code of its own that ends its process while it loads, as the system does where memory is short.
_CODE = """
import os
from transformers import LlamaForCausalLM

class Deadly(LlamaForCausalLM):
    def __init__(self, config):
        with open(config.deaths, "a") as file:
            file.write(f"{os.getpid()}\\n")
        os._exit(9)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_llama(tmp_path_factory.mktemp("model") / "m")


def test_a_model_that_kills_its_actor_as_it_loads(
    model: Path, tmp_path: Path, shared_ray: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each death is told; the run ends after some, of another process each; with a model that loads, the same run goes on."""
    monkeypatch.setattr(pool, "MAX_LOAD_DEATHS", 2)
    deadly = shutil.copytree(model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "deadly.Deadly"}, "deaths": str(tmp_path / "deaths")}
    (deadly / "deadly.py").write_text(_CODE)
    (deadly / "config.json").write_text(json.dumps(config))
    given = {"store": tmp_path / "st", "name": "r", "ray": shared_ray}
    with pytest.raises(raylens.ModelError, match=r"actors die while they load the model \(.*\); is there enough memory for it\?"):
        raylens.run(["call me"], model=str(deadly), trust_remote_code=True, **given)
    assert capsys.readouterr().err.count("an actor died while it loaded the model (") == 1, "and the second with the error"
    assert len(set((tmp_path / "deaths").read_text().split())) == 2
    assert raylens.run(["call me"], model=str(model), **given).counts()["records"] == 1


# One that waits in the middle of a prompt with one token, for as long as there is a file.
_WAITING = """
import os, time
from transformers import LlamaForCausalLM, LlamaModel

class WaitingModel(LlamaModel):
    def forward(self, input_ids=None, **rest):
        while input_ids is not None and (input_ids == self.config.awaited).any() and os.path.exists(self.config.held_by):
            time.sleep(0.01)
        return super().forward(input_ids=input_ids, **rest)

class Waiting(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = WaitingModel(config)
        self.post_init()
"""


def test_a_prompt_that_hangs_its_actor(model: Path, tmp_path: Path, shared_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told where: no one else can know whether it will ever end."""
    monkeypatch.setattr(dispatch, "QUIET_SECONDS", 0.5)
    waiting = shutil.copytree(model, tmp_path / "m")
    held_by = tmp_path / "held"
    held_by.touch()
    config = json.loads((model / "config.json").read_text())
    awaited = AutoTokenizer.from_pretrained(model)(" 7")["input_ids"][-1]
    config |= {"auto_map": {"AutoModelForCausalLM": "waiting.Waiting"}, "awaited": awaited, "held_by": str(held_by)}
    (waiting / "waiting.py").write_text(_WAITING)
    (waiting / "config.json").write_text(json.dumps(config))
    given = {"store": tmp_path / "st", "name": "r", "quiet": True, "ray": shared_ray, "trust_remote_code": True}
    folder = RunFolder(tmp_path / "st" / "runs" / "r")

    def told() -> bool:
        return "they are working on the shards that begin with 'it'" in (pulse.waiting if (pulse := read_pulse(folder)) else "")

    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(raylens.run, [{"id": "it", "text": "call me 7"}], model=str(waiting), **given)
        wait_until(told, "it is told")
        held_by.unlink()
        assert run.result().counts()["records"] == 1


def test_a_cluster_whose_cpus_are_taken(model: Path, tmp_path: Path, shared_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No actor gets a place: the run says so and ends; when the cluster is free again, it goes on."""
    monkeypatch.setattr(placing, "PLACE_SECONDS", 0.0)
    monkeypatch.setattr(placing, "MAX_PLACE_SECONDS", 1.0)
    given = {"model": str(model), "store": tmp_path / "st", "name": "r", "quiet": True}
    with cluster(shared_ray):
        taken = placement_group([{"CPU": 2}])
        ray.get(taken.ready())
        with pytest.raises(
            raylens.ClusterError, match="no actor has started; check whether something else uses the cluster's CPUs"
        ):
            raylens.run(["call me"], **given)
        remove_placement_group(taken)
        monkeypatch.undo()
        assert raylens.run(["call me"], **given).counts()["complete"]
