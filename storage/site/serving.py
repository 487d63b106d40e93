"""Serves the site until it is stopped."""

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from raylens.storage.errors import UsageError
from raylens.storage.site.app import site
from raylens.storage.site.guard import is_loopback
from raylens.storage.site.shelf import Shelf


def serve(store: str | Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve a store; returns when interrupted.

    Args:
        host, port: to listen on; port 0 is any free one.
        ready: called with the address to open, with its token if one is needed.

    Raises:
        StoreError: there is no such store.
        UsageError: the host or port cannot be used.
    """
    shelf = Shelf(store)
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    with _listening(host, port) as listener:
        config = uvicorn.Config(site(shelf, token), log_level="warning", access_log=False, server_header=False)
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listener.getsockname()[1]}/" + (f"?token={token}" if token else ""))
        with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended well
            uvicorn.Server(config).run([listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: cannot be used ({error.strerror}); choose others") from error
