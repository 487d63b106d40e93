"""A real headless Chromium, and pages of it that report whatever a page must not do."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.viewing import Site, viewing
from tests.browser.watched import Watched
from tests.waiting import HUNG


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; a machine without one fails the tests."""
    path = shutil.which("chromium")
    assert path is not None, "the tests of pages need chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address, ``open_page(url, width=..., colours=...)``.

    Afterwards no page may have logged an error, asked for another origin or shown a dialog.
    """
    watched: list[Watched] = []

    def open_one(url: str, width: int = 1280, colours: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=colours)  # type: ignore[arg-type]
        context.set_default_timeout(1000 * HUNG)
        page = context.new_page()
        watched.append(Watched(page, url))
        page.goto(url)
        return page

    yield open_one
    for one in watched:
        one.page.context.close()
    assert [problem for one in watched for problem in one.problems] == []


@pytest.fixture
def view(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Serves a store by the real command: ``view(store)``."""
    sites: list[Site] = []

    def start(store: Path, *options: str) -> Site:
        sites.append(viewing(store, *options))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()
