"""``raylens view`` as a process of its own."""

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import orjson

_SECONDS = 60


@dataclass(frozen=True)
class Answer:
    """What the site answered, redirects not followed."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> object:
        """The body as JSON."""
        return orjson.loads(self.body)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


@dataclass
class Site:
    """A running site.

    Attributes:
        address: as the command printed it.
    """

    process: "subprocess.Popen[str]"
    address: str

    def url(self, path: str) -> str:
        """The address of a path."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}{path}"

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask for a path; ``_`` in a header's name stands for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url(path), headers=named, method=method)
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=_SECONDS) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def stop(self) -> int:
        """End it by Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def viewing(store: Path, *options: str) -> Site:
    """Start the command and wait for the address that it prints."""
    command = [sys.executable, "-m", "raylens", "view", str(store), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("raylens: http"), line
    return Site(process, line.removeprefix("raylens: ").strip())
