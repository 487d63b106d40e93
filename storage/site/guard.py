"""Who may read the site: a reader on this machine, or one with the token where the site can be reached from others."""

import hashlib
import ipaddress
import secrets
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Pages of the site load what the site serves, and nothing else; the page of a record has a stricter policy of its own.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks each request before the site sees it, and puts security headers on each answer.

    On a loopback address the Host header must name one too: else a page elsewhere could reach the site under a name of its own
    that its name server points here. On other addresses a reader must have the token, once in the address, then as a cookie.

    Args:
        token: what a reader must know; None where the site is served on a loopback address.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token
        # cookies know no port: the name tells the sites of one machine apart
        self._cookie = f"raylens-{hashlib.sha256((token or '').encode()).hexdigest()[:16]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["method"] not in {"GET", "HEAD"}:
            return PlainTextResponse("this site is read-only", 405, {"Allow": "GET, HEAD"})
        connection = HTTPConnection(scope)
        if self._token is None:
            host = _host(Headers(scope=scope).get("host", ""))
            wrong = f"this site does not answer to {host[:80]!r}: open it as 127.0.0.1 or localhost"
            return None if is_loopback(host) else PlainTextResponse(wrong, 421)
        if _same(connection.cookies.get(self._cookie, ""), self._token):
            return None
        if not _same(connection.query_params.get("token", ""), self._token):
            return PlainTextResponse("open the site at the address that raylens view printed, which holds its token", 403)
        # The token leaves the address at once, so that it is in no history, bookmark or copied address.
        query = urlencode([(name, value) for name, value in connection.query_params.multi_items() if name != "token"])
        path = "/" + scope["raw_path"].decode("latin-1").lstrip("/")  # as it was asked for; two slashes would name another host
        answer = RedirectResponse(path + (f"?{query}" if query else ""), 303)
        # "lax": a link to the site from a page elsewhere is followed; nothing there is changed by a request
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
        return answer


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), token.encode())


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
