"""A model hub on this machine: folders served over HTTP as huggingface_hub asks for them."""

import hashlib
import json
import re
import threading
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_ABOUT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<under>.+))?)?")


@dataclass
class Repository:
    """One model: a folder for each commit, the commit of each branch, and whether it asks for a licence or a token."""

    commits: dict[str, Path] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def push(self, folder: Path, branch: str = "main") -> str:
        """The folder's files as the branch's newest commit; its name."""
        content = b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.iterdir()))
        commit = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.commits[commit] = folder
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """The commit of a branch, or the commit itself."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """Serves repositories at ``url`` until left.

    Attributes:
        repositories: by id, such as ``org/name``.
        asked: method and path of each request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: deque[str] = deque()
        hub = self

        class Handler(_Handler):
            serves = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="hub", daemon=True).start()

    def add(self, repo: str, folder: Path, gated: bool = False) -> str:
        """A repository whose only commit holds the folder's files; the commit."""
        self.repositories[repo] = Repository(gated=gated)
        return self.repositories[repo].push(folder)

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    serves: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def log_message(self, *_: object) -> None: ...

    def _answer(self, send: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.serves.asked.append(f"{self.command} {path}")
        if (found := _FILE.fullmatch(path)) is None and (found := _ABOUT.fullmatch(path)) is None:
            self._refuse("EntryNotFound", send)
            return
        repository = self.serves.repositories.get(found["repo"])
        if repository is None:
            self._refuse("RepoNotFound", send, HTTPStatus.UNAUTHORIZED)  # the hub does not say which of the two it is
        elif (commit := repository.find(found["revision"] or "main")) is None:
            self._refuse("RevisionNotFound", send)
        elif "file" not in found.groupdict():
            self._tell(repository, commit, found, send)
        elif repository.gated:
            self._refuse("GatedRepo", send, HTTPStatus.FORBIDDEN)
        else:
            self._send_file(repository.commits[commit] / found["file"], commit, send)

    def _tell(self, repository: Repository, commit: str, found: "re.Match[str]", send: bool) -> None:
        files = sorted(path for path in repository.commits[commit].iterdir())
        if found["under"]:
            self._refuse("EntryNotFound", send)
        elif found["what"] == "tree":
            self._send_json(
                [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0"} for path in files], send
            )
        else:
            siblings = [{"rfilename": path.name} for path in files]
            about = {"id": found["repo"], "sha": commit, "siblings": siblings, "private": False, "tags": [], "gated": False}
            self._send_json(about, send)

    def _send_file(self, path: Path, commit: str, send: bool) -> None:
        if not path.is_file():
            self._refuse("EntryNotFound", send, commit=commit)
            return
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self._send(content, send, **{"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"})

    def _send_json(self, value: object, send: bool) -> None:
        self._send(json.dumps(value).encode(), send, **{"Content-Type": "application/json"})

    def _refuse(self, code: str, send: bool, status: HTTPStatus = HTTPStatus.NOT_FOUND, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": commit} if commit else {})
        self._send(b"{}", send, status, **headers)

    def _send(self, content: bytes, send: bool, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(content)
