"""What a run writes before its first actor: its name, and what its results depend on. The user stops it there."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylens import __version__
from raylens.scheduler.corpus import Corpus
from raylens.scheduler.progress import Progress
from raylens.scheduler.run import RunResult, run_corpus
from raylens.scheduler.settings import RunSettings
from raylens.scheduler.stopping import NotBegun
from raylens.storage.errors import ModelError, StoreError, UsageError
from raylens.storage.layout import RunFolder, runs_folder
from raylens.storage.manifest import Manifest, read_manifest
from raylens.workers.settings import GenerationSettings, InputSettings, LensSettings, ModelSettings, WorkerSettings
from tests.builders import commit_outcomes, make_failure, make_record
from tests.tiny import save_word_llama

ROWS = [{"id": "a", "text": "call me"}, {"id": "b", "text": "some years ago"}]
CHAT = [{"messages": [{"role": "user", "content": "call me"}]}]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Stopped(Progress):
    """A user who stops as soon as the run tells its name; what it told then, and the stages before."""

    def __init__(self) -> None:
        self.told: tuple[str, int, int, int] | None = None
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def start(self, run: str, total: int, done: int, failed: int) -> None:
        self.told = (run, total, done, failed)


class Place:
    """A folder with models, and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "st"

    def model(self, name: str = "m", seed: int = 11) -> str:
        folder = self.folder / name
        return str(folder if folder.exists() else save_word_llama(folder, seed=seed))

    def begin(self, rows: Any = ROWS, model: str | None = None, dtype: str = "auto", **changes: Any) -> Stopped:
        """What was told by a run that was stopped before it had an actor."""
        parts = {name: changes.pop(name) for name in ("lens", "input", "generation") if name in changes}
        worker = WorkerSettings(ModelSettings(model or self.model(), dtype=dtype), **parts)  # type: ignore[arg-type]
        progress = Stopped()
        settings = RunSettings(worker, self.store, **changes)
        found = run_corpus(settings, Corpus.from_rows(rows), progress, lambda: progress.told is not None)
        assert progress.told is not None
        assert found == RunResult(progress.told[0], complete=progress.told[1] == progress.told[2])
        return progress

    def manifest(self, progress: Stopped) -> Manifest:
        assert progress.told is not None
        return read_manifest(RunFolder(runs_folder(self.store) / progress.told[0]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("begun"))


@pytest.mark.parametrize(
    ("label", "slug"),
    [
        ("Qwen2.5 7B_x", "qwen2.5-7b_x"),
        ("..hidden--", "hidden"),
        ("模型", "run"),
        ("a" * 90, "a" * 60),
    ],
)
def test_a_run_without_a_name_is_called_after_model_and_corpus(place: Place, label: str, slug: str) -> None:
    """So that the same command finds it again; whatever the model's folder is called, it is a name that --name would take."""
    model = place.model(label)
    first, again = place.begin(model=model), place.begin(model=model)
    assert first.told is not None
    assert again.told == first.told
    name, _, fingerprint = first.told[0].rpartition("-")
    manifest = place.manifest(first)
    assert (name, fingerprint) == (slug, manifest.identity["corpus"]["fingerprint"][:8])
    assert manifest.sources["label"] == label
    assert place.begin(model=model, name=first.told[0]).told == first.told


def test_what_a_manifest_says(place: Place) -> None:
    """What the results depend on, how many there are to be, and for people where all of it is from."""
    generation = GenerationSettings(4, temperature=1.0, samples=3)
    manifest = place.manifest(place.begin(name="whole", generation=generation, input=InputSettings(max_tokens=9, on_long="skip")))
    assert manifest.prompts == 6
    assert manifest.identity["corpus"]["prompts"] == 2
    assert manifest.identity["generation"] == msgspec.to_builtins(generation)
    assert manifest.identity["input"] == {"max_tokens": 9, "on_long": "skip", "chat_template": None}
    assert manifest.identity["lens"]["kind"] == "logit"
    assert manifest.sources == {"model": place.model(), "label": "m", "revision": None, "corpus": "rows"}
    assert manifest.versions["raylens"] == __version__
    assert manifest.versions["torch"] == importlib.metadata.version("torch")
    plain = place.manifest(place.begin(name="plain"))
    assert plain.prompts == 2
    assert "generation" not in plain.identity


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": "other"}, "model.weights: "),
        ({"dtype": "bfloat16"}, "model.dtype: auto -> bfloat16"),
        ({"rows": ROWS[:1]}, "corpus.prompts: 2 -> 1"),
        ({"rows": [ROWS[0], {"id": "b", "text": "other words"}]}, "corpus.fingerprint: "),
        ({"input": InputSettings(max_tokens=2)}, "input.max_tokens: None -> 2"),
        ({"input": InputSettings(on_long="truncate")}, "input.on_long: error -> truncate"),
        ({"lens": LensSettings(top_k=3)}, "lens.top_k: 10 -> 3"),
        ({"lens": LensSettings(positions="all")}, "lens.positions: last -> all"),
        ({"lens": LensSettings(track=("id:3",))}, "lens.track: None -> ['id:3']"),
        ({"lens": LensSettings(heads="1")}, "lens.heads: None -> 1"),
        ({"generation": GenerationSettings(4)}, "generation.tokens: None -> 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_run_with_results_takes_no_other_settings(place: Place, changes: dict[str, Any], difference: str) -> None:
    """They would be of two kinds; the difference is told."""
    folder = RunFolder(runs_folder(place.store) / "kept")
    if not folder.root.exists():
        place.begin(name="kept")
        commit_outcomes(folder, make_record(0, vocabulary_size=256))
    if "model" in changes:
        changes = {"model": place.model(seed=12, name="other")}
    with pytest.raises(UsageError) as refused:
        place.begin(name="kept", **changes)
    assert difference in str(refused.value)


def test_another_tokenizer_is_another_run(place: Place) -> None:
    """Of the same weights: the same words are other tokens to it."""
    place.begin(name="words")
    commit_outcomes(RunFolder(runs_folder(place.store) / "words"), make_failure(0))
    other = shutil.copytree(place.model(), place.folder / "renamed")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["call"], words["me"] = words["me"], words["call"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match=r"settings: model\.tokenizer: \w+ -> \w+;"):
        place.begin(name="words", model=str(other))


def test_what_makes_no_difference(place: Place) -> None:
    """How much is done at once, and by how many, is open to each call; so is a chat template where no prompt is a chat."""
    first = place.begin(name="open")
    changes: dict[str, Any] = {"actors": 3, "writer_helpers": 0, "input": InputSettings(TEMPLATE, batch_tokens=64)}
    assert place.begin(name="open", **changes).told == first.told


def test_another_chat_template_is_another_run(place: Place) -> None:
    """Where prompts are chats."""
    first = place.begin(CHAT, name="chats", input=InputSettings(TEMPLATE))
    commit_outcomes(RunFolder(runs_folder(place.store) / "chats"), make_failure(0))
    assert place.manifest(first).identity["input"]["chat_template"]
    with pytest.raises(UsageError, match=r"input\.chat_template: "):
        place.begin(CHAT, name="chats", input=InputSettings(TEMPLATE + "."))


def test_a_chat_needs_a_template(place: Place) -> None:
    """Told with the remedy before anything is begun; a corpus without chats needs none."""
    with pytest.raises(ModelError, match="has no chat template for prompts with messages; give --chat-template FILE"):
        place.begin(CHAT, name="none")
    assert not (runs_folder(place.store) / "none").exists()


def test_what_is_stored_already_is_told(place: Place) -> None:
    """Records and failures of the calls before; a run that has all of them is complete."""
    folder = RunFolder(runs_folder(place.store) / "told")
    assert place.begin(name="told").told == ("told", 2, 0, 0)
    commit_outcomes(folder, make_failure(1))
    assert place.begin(name="told").told == ("told", 2, 1, 1)
    commit_outcomes(folder, make_record(0, vocabulary_size=256))
    assert place.begin(name="told").told == ("told", 2, 2, 1)


def test_records_that_lost_their_manifest(place: Place) -> None:
    """They may be of any model: the run does not go on as if they were of this one."""
    place.begin(name="lost")
    folder = RunFolder(runs_folder(place.store) / "lost")
    commit_outcomes(folder, make_failure(1))
    folder.manifest.unlink()
    with pytest.raises(StoreError, match=r"run\.json: missing, and nothing else says what the records are of"):
        place.begin(name="lost")
    assert not folder.manifest.exists()


def test_begun_anew(place: Place) -> None:
    """The earlier run of the name is kept beside, which is told."""
    place.begin(name="again")
    commit_outcomes(RunFolder(runs_folder(place.store) / "again"), make_failure(1))
    anew = place.begin(name="again", fresh=True)
    assert anew.told == ("again", 2, 0, 0)
    assert "the earlier run again is now again.old-1" in anew.stages
    assert (runs_folder(place.store) / "again.old-1" / "run.json").exists()


def test_stopped_before_it_is_begun_anew(place: Place) -> None:
    """While the model's configuration is read: the earlier run stays where it is."""
    place.begin(name="kept")
    progress = Stopped()
    settings = RunSettings(WorkerSettings(ModelSettings(place.model())), place.store, name="kept", fresh=True)
    with pytest.raises(NotBegun):
        run_corpus(settings, Corpus.from_rows(ROWS), progress, lambda: "reading the model's configuration" in progress.stages)
    assert sorted(path.name for path in runs_folder(place.store).glob("kept*")) == ["kept"]
