"""A page whose errors, dialogs and requests to elsewhere are kept."""

from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Dialog, Page, Request


class Watched:
    """Watches a page from before it is opened.

    Attributes:
        problems: what it must not have done, in words.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self._origin = urlsplit(url)[:2]
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"console: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if urlsplit(request.url)[:2] != self._origin:
            self.problems.append(f"request: {request.url[:200]}")
