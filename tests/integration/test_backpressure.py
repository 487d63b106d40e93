"""Runs whose writer is slow, stopped or stuck, or whose server is full: they wait, say for what, and lose nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raylens
from raylens.scheduler.tracker import open_bytes
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.stream import connect
from tests.running import Running
from tests.servers import RealServer
from tests.tiny import save_word_llama, sentences
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("shared_ray")

PROMPTS = 480
#: Bytes that the server may hold, and that may be open then.
LIMIT = 32 << 20
BOUND = open_bytes(LIMIT)
OPTIONS = [
    "--positions",
    "all",
    "--logprobs",
    "float32",
    "-k",
    "50",
    "--batch-tokens",
    "64",
    "--actors",
    "1",
    "--name",
    "r",
    "--json",
]


class Watched(Running):
    """A run all of whose events are kept."""

    def __init__(self, folder: Path, model: Path, server: RealServer, *options: str) -> None:
        corpus = folder / "prompts.jsonl"
        corpus.write_text(
            "".join(json.dumps({"id": f"p/{n}", "text": text}) + "\n" for n, text in enumerate(sentences(PROMPTS, 24)))
        )
        arguments = ["run", str(corpus), "-m", str(model), "-o", str(folder / "store"), "--redis", server.url, *OPTIONS, *options]
        super().__init__(folder / "driver", *arguments)
        self.folder = RunFolder(folder / "store" / "runs" / "r")
        self.seen: list[dict[str, Any]] = []

    def events(self) -> Iterator[dict[str, Any]]:
        for event in super().events():
            self.seen.append(event)
            yield event

    def assert_whole(self) -> None:
        """It ended well: each prompt is one record, nothing was sent twice, and never more was open than may be."""
        assert self.finish() == 0, self.stderr()
        entries = [entry for commit in Ledger(self.folder).refresh() for entry in commit.entries]
        assert sorted(entry.index for entry in entries) == list(range(PROMPTS))
        assert raylens.open(self.folder.root.parent.parent)["r"].counts()["records"] == PROMPTS
        assert not [event for event in self.seen if "resubmitting" in event.get("text", "")]
        flying = [event["in_flight_bytes"] for event in self.seen if "in_flight_bytes" in event]
        assert 0 < max(flying) <= BOUND


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that makes many bytes in little time."""
    return save_word_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server() -> Iterator[RealServer]:
    """A small server, which a run leaves empty."""
    with RealServer("valkey9", "--maxmemory", str(LIMIT), "--maxmemory-policy", "noeviction") as server:
        yield server
        with connect(server.url) as client:
            assert client.dbsize() == 0


def stream_bytes(server: RealServer) -> int:
    """What the server holds for the one run that it serves."""
    with connect(server.url) as client:
        (key,) = client.keys()
        return int(client.memory_usage(key, samples=0))


def test_a_slow_writer(server: RealServer, tmp_path: Path, model: Path) -> None:
    """It stops and goes on; while it stops, no more is submitted than may be open, and the run tells what it waits for."""
    with Watched(tmp_path, model, server) as run:
        run.until("progress")
        (writer,) = run.children("raylens.storage.writer")
        writer.suspend()
        # told again and again; not until the bound is near is it the bound that stops it
        while run.until("waiting", "waiting for the writer to store")["in_flight_bytes"] <= BOUND / 2:
            pass
        assert stream_bytes(server) <= 1.5 * BOUND, "the server rounds each frame up"
        writer.resume()
        run.until("progress")
        writer.suspend()
        run.until("waiting", "waiting for the writer to store")
        writer.resume()
        run.assert_whole()


def test_a_writer_that_is_stopped_and_started_again(server: RealServer, tmp_path: Path, model: Path) -> None:
    """The run names the command that is missing, and waits for it."""
    store = tmp_path / "store"
    store.mkdir()
    command = ["writer", str(store), "--redis", server.url, "--run", "r"]
    with Watched(tmp_path, model, server, "--writer", "external") as run:
        with Running(tmp_path / "first", *command) as writer:
            run.until("progress")
            writer.stop()
            assert writer.finish() == 130, writer.stderr()
        assert "is raylens writer" in run.until("waiting", "waiting for the writer to store")["text"]
        assert stream_bytes(server) <= 1.5 * BOUND
        with Running(tmp_path / "second", *command) as writer:
            run.assert_whole()
            assert writer.finish() == 0, writer.stderr()


def test_a_frozen_server(server: RealServer, tmp_path: Path, model: Path) -> None:
    """It keeps its connections and answers nothing. The run says so, and ends when it is told to, its writer too."""
    with Watched(tmp_path, model, server) as run:
        run.until("progress")
        server.freeze()
        try:
            run.until("waiting", "server away: ")
            run.stop()
            assert run.finish() == 130, run.stderr()
        finally:
            server.thaw()
    with Watched(tmp_path, model, server) as run:
        run.assert_whole()


def test_a_server_that_takes_no_writes(server: RealServer, tmp_path: Path, model: Path) -> None:
    """It answers, so it is named with its own words, and not the prompts that actors hold meanwhile."""
    with connect(server.url) as client, Watched(tmp_path, model, server) as run:
        run.until("progress")
        client.config_set("min-replicas-to-write", "1")
        assert "NOREPLICAS" in run.until("waiting", "server away: ")["text"]
        client.config_set("min-replicas-to-write", "0")
        run.assert_whole()
    refused = (run.folder.root / "writer.log").read_text().count("could not delete")
    assert refused <= 1, "once an outage"


def test_a_full_server(server: RealServer, tmp_path: Path, model: Path) -> None:
    """Before the run begins others fill it, and while it is at work it shrinks: actors keep their results until there is room."""
    with connect(server.url, retries=0) as other, Watched(tmp_path, model, server) as run:
        other.config_set("maxmemory", "0")
        other.set("ballast", bytes(LIMIT))
        other.config_set("maxmemory", str(LIMIT))
        run.until("waiting", "the server is full")
        wait_until(lambda: Ledger(run.folder).refresh(), "the writer has taken over")
        assert [commit.entries for commit in Ledger(run.folder).refresh()] == [[]], "nothing but its fence"
        other.delete("ballast")
        run.until("progress")
        other.config_set("maxmemory", "1")
        for _ in range(4):  # for longer than a client waits by itself
            run.until("waiting", "the server is full")
        assert other.xlen(*other.keys()) == 0, "the writer took out all that is in a full server"
        other.config_set("maxmemory", str(LIMIT))
        run.assert_whole()
