"""``raylens writer`` beside ``raylens run --writer external``: two commands that share a store and a server, and nothing else."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

import raylens
from raylens.scheduler.external_writer import ExternalWriter
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.manifest import create_or_resume
from raylens.storage.repair import repair
from raylens.storage.server import EmbeddedServer
from raylens.storage.store import Store
from raylens.storage.stream import Stream
from raylens.storage.writer import Writer
from tests.builders import make_frames, make_manifest, make_record, make_run
from tests.command import raylens_command
from tests.running import Running
from tests.tiny import sentences
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = 200


def writers_of(folder: RunFolder) -> list[str]:
    """The writer of each commit that holds prompts."""
    return [commit.writer for commit in Ledger(folder).refresh() if commit.entries]


def test_one_writer_outlives_its_drivers(server: EmbeddedServer, tmp_path: Path, tiny: Path) -> None:
    """Begun before the run, it goes on while the driver is killed and comes back, and ends with the run."""
    corpus, store = tmp_path / "c.jsonl", tmp_path / "st"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(PROMPTS, 24)))
    options = ["--name", "r", "--actors", "1", "--positions", "all", "--batch-tokens", "64", "--json"]
    run = ["run", str(corpus), "-m", str(tiny), "-o", str(store), "--redis", server.url, "--writer", "external", *options]
    with Running(tmp_path / "writer", "writer", str(store), "--redis", server.url, "--run", "r") as writer:
        with Running(tmp_path / "first", *run) as driver:
            assert 0 < driver.until("progress")["done"] < PROMPTS
            assert driver.children("raylens.storage.writer") == [], "the driver has no writer of its own"
            assert len(writer.children("raylens.storage.writer")) == 1
            os.kill(driver.process.pid, signal.SIGKILL)
        with Running(tmp_path / "second", *run) as driver:
            assert driver.until("start")["done"] > 0
            assert driver.finish() == 0, driver.stderr()
        assert writer.finish() == 0, writer.stderr()
        assert "r: waiting for raylens run --writer external" in writer.stderr()
        assert f"r: complete, {PROMPTS} prompts are stored" in writer.stderr()
    folder = RunFolder(store / "runs" / "r")
    assert len(set(writers_of(folder))) == 1
    assert raylens.open(store)["r"].counts()["records"] == PROMPTS
    entered = [entry.index for commit in Ledger(folder).refresh() for entry in commit.entries]
    assert sorted(entered) == list(range(PROMPTS))


def test_a_driver_without_a_writer_says_so_and_waits(server: EmbeddedServer, tmp_path: Path, tiny: Path) -> None:
    """It names the command that is missing; once that runs, both end."""
    store = str(tmp_path / "st")
    run = ["run", "--text", "call me", "-m", str(tiny), "-o", store, "--redis", server.url, "--writer", "external", "--json"]
    with Running(tmp_path / "driver", *run, "--name", "r", "--actors", "1") as driver:
        driver.until("waiting", words=f"is raylens writer {store} --redis URL running?")
        with Running(tmp_path / "writer", "writer", store, "--redis", server.url, "--run", "r") as writer:
            assert driver.finish() == 0, driver.stderr()
            assert writer.finish() == 0, writer.stderr()


def test_it_serves_only_runs_that_ask(server: EmbeddedServer, tmp_path: Path) -> None:
    """Of a store's runs it takes those with the mark, also one that begins later, until Ctrl-C; then what is there is stored."""
    other, _ = make_run(tmp_path, name="other")
    asks, manifest = make_run(tmp_path, name="asks")
    asks.wants_external_writer.touch()
    shutil.copytree(asks.root, asks.root.with_name(os.fsdecode(b"a\xe9")))  # a name that is no text is no run's
    stream = Stream(server.url, manifest.uid)
    stream.create()
    with Running(tmp_path / "log", "writer", str(tmp_path), "--redis", server.url) as writer:
        wait_until(lambda: Ledger(asks).refresh(), "the writer takes over the run that asks")
        later, _ = make_run(tmp_path, name="later")
        later.wants_external_writer.touch()
        wait_until(lambda: Ledger(later).refresh(), "and the one that asks later")
        for data in make_frames(make_record(0), manifest.uid):
            stream.publish(data)
        wait_until(lambda: writers_of(asks), "it commits")
        writer.stop()
        assert writer.finish() == 130
    assert Ledger(other).refresh() == []
    stream.drop()
    stream.close()


def test_a_run_begun_anew_under_its_name(server: EmbeddedServer, tmp_path: Path) -> None:
    """A run that had stored nothing when it got other settings is another, which is written too."""
    folder, _ = make_run(tmp_path, prompts=1)
    folder.wants_external_writer.touch()
    with Running(tmp_path / "log", "writer", str(tmp_path), "--redis", server.url, "--run", "demo") as writer:
        wait_until(lambda: Ledger(folder).refresh(), "the writer takes over")
        wanted = make_manifest(1, identity={"lens": {"top_k": 5}})
        assert create_or_resume(folder, wanted).uid == wanted.uid
        stream = Stream(server.url, wanted.uid)
        stream.create()
        for data in make_frames(make_record(0), wanted.uid):
            stream.publish(data)
        assert writer.finish() == 0, writer.stderr()
    assert len(writers_of(folder)) == 1
    stream.drop()
    stream.close()


def test_a_fenced_writer_says_so(server: EmbeddedServer, tmp_path: Path) -> None:
    """When another writer has taken the run over, it ends with exit code 6 and has committed nothing after."""
    folder, manifest = make_run(tmp_path)
    folder.wants_external_writer.touch()
    stream = Stream(server.url, manifest.uid)
    stream.create()
    with Running(tmp_path / "log", "writer", str(tmp_path), "--redis", server.url, "--run", "demo") as writer:
        wait_until(lambda: Ledger(folder).refresh(), "the writer takes over")
        rival = Writer(folder, stream)
        rival.take_over()
        for data in make_frames(make_record(0), manifest.uid):
            stream.publish(data)
        assert writer.finish() == 6
        assert "another writer took over" in writer.stderr()
    assert writers_of(folder) == []
    stream.drop()
    stream.close()


def test_a_damaged_run_is_left_out(server: EmbeddedServer, tmp_path: Path) -> None:
    """It is told, and the other runs are served."""
    broken, _ = make_run(tmp_path, name="broken")
    (broken.commits / "000000001.json").write_text("{}")
    good, _ = make_run(tmp_path, name="good")
    for folder in (broken, good):
        folder.wants_external_writer.touch()
    with Running(tmp_path / "log", "writer", str(tmp_path), "--redis", server.url) as writer:
        wait_until(lambda: Ledger(good).refresh(), "the good run is served")
        writer.stop()
        assert writer.finish() == 130
        assert "broken: left out" in writer.stderr()


def test_a_run_that_is_done_or_was_left_out_may_ask_again(server: EmbeddedServer, tmp_path: Path) -> None:
    """A driver that comes back after a repair, or after a rival, is served by the writer that runs already."""
    folder, manifest = make_run(tmp_path, prompts=2)
    ExternalWriter(folder)
    stream = Stream(server.url, manifest.uid)
    stream.create()

    def publish(index: int) -> None:
        for data in make_frames(make_record(index), manifest.uid):
            stream.publish(data)

    with Running(tmp_path / "log", "writer", str(tmp_path), "--redis", server.url) as writer:
        publish(0)
        publish(1)
        wait_until(lambda: "demo: complete" in writer.stderr(), "it is complete")
        damaged = Ledger(folder).refresh()[-1]
        path = folder.records / str(damaged.segment)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert list(repair(folder)) != []
        ExternalWriter(folder)
        for index in {0, 1} - {entry.index for commit in Ledger(folder).refresh() for entry in commit.entries}:
            publish(index)
        wait_until(lambda: Store(tmp_path)["demo"].counts()["complete"], "it is whole again")
        writer.stop()
        assert writer.finish() == 130
    stream.drop()
    stream.close()


def test_wrong_use(tmp_path: Path) -> None:
    """An external writer needs a server that both reach; a server that is not there is exit code 5."""
    done = raylens_command("run", "--text", "a", "-m", "demo", "-o", str(tmp_path), "--writer", "external")
    assert done.returncode == 2
    assert "give --redis URL" in done.stderr
    assert raylens_command("writer", str(tmp_path), "--redis", "unix:///nowhere/socket").returncode == 5
