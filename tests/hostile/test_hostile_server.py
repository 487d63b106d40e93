"""A server carries frames and is trusted with nothing more."""

import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import pytest

from raylens.scheduler.progress import Lines
from raylens.storage.errors import BrokerError
from raylens.storage.stream import Stream
from raylens.storage.writer import Writer
from tests.builders import make_run

#: An id that would be a path out of the run's folder.
OUTSIDE = b"../../../outside"


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def read_command(file: BinaryIO) -> list[bytes]:
    """One command of the client; nothing at the end."""
    words = []
    for _ in range(int(file.readline()[1:] or 0)):
        size = int(file.readline()[1:])
        words.append(file.read(size + 2)[:size])
    return words


class Answers(socketserver.StreamRequestHandler):
    """Says yes to everything, and gives one entry of which it chose the id."""

    def handle(self) -> None:
        while words := read_command(self.rfile):
            if words[0] == b"XREAD":
                entry = b"*2\r\n" + bulk(OUTSIDE) + b"*2\r\n" + bulk(b"f") + bulk(b"chosen bytes")
                self.wfile.write(b"*1\r\n*2\r\n" + bulk(words[-2]) + b"*1\r\n" + entry)
            else:
                self.wfile.write(b"+OK\r\n")


class Refuses(socketserver.StreamRequestHandler):
    """Answers everything by an error that sets a terminal's title."""

    def handle(self) -> None:
        while read_command(self.rfile):
            self.wfile.write(b"-ERR \x1b]0;owned\x07\r\n")


@contextmanager
def serving(handler: type[socketserver.StreamRequestHandler]) -> Iterator[str]:
    """The URL of such a server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def url() -> Iterator[str]:
    with serving(Answers) as url:
        yield url


def test_ids_of_entries_become_no_paths(url: str, tmp_path: Path) -> None:
    """A server that gives an entry the id ``../../x`` writes no file of that name."""
    folder, manifest = make_run(tmp_path / "store")
    stream = Stream(url, manifest.uid, retries=0)
    writer = Writer(folder, stream)
    writer.take_over()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BrokerError, match="ids that no Redis gives"):
        stream.read("0-0", 0)
    writer.step()  # goes on as if the server were away
    stream.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_errors_give_a_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    """They are quoted while a run goes on."""
    with serving(Refuses) as url:
        stream = Stream(url, "0" * 16, retries=0)
        with pytest.raises(BrokerError) as caught:
            stream.length()
        stream.close()
    Lines().waiting(f"server away: {caught.value}")
    said = capsys.readouterr().err
    assert "‹001B›]0;owned‹0007›" in said
    assert said.strip("\n").isprintable()
