"""What all tests share: one real server for the session, and the rule that a test leaves nothing in it."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from raylens.storage.server import EmbeddedServer
from raylens.storage.stream import Stream, connect

if shutil.which("nvidia-smi") is None:  # before anything imports triton: its kernels run in the interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Threads of two tests at once wait for each other's turn on two cores, and would spin while they do
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, where what tests start would not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("raylens", deadline=None)  # the machine may be busy; pytest's own timeout holds
settings.load_profile("raylens")


@pytest.fixture(scope="session")
def session_server() -> Iterator[EmbeddedServer]:
    """A real Valkey for the whole session; tests use ``server``."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def server(session_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """The session's server. A test that leaves a key in it fails."""
    yield session_server
    with connect(session_server.url, retries=3) as client:
        left = client.info("keyspace")
    if left:
        session_server.restart()  # so that the next test is not blamed
        pytest.fail(f"the test left keys in the server: {left}")


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of the test's own, to kill, fill or restart."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def open_stream() -> Iterator[Callable[..., Stream]]:
    """Opens streams, ``open_stream(url, run)``, and closes them after the test."""
    opened: list[Stream] = []

    def open_one(url: str, run: str, retries: int = 2) -> Stream:
        opened.append(Stream(url, run, retries))
        return opened[-1]

    yield open_one
    for stream in opened:
        stream.close()
