"""A real browser for the tests of pages: Chromium without a window, where one is installed (or named by FGZOO_BROWSER)."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: Milliseconds that a busy machine may take to load a page.
PATIENCE = 120_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


def find_browser() -> str | None:
    """The browser that FGZOO_BROWSER names, or the first that is installed."""
    named = os.environ.get("FGZOO_BROWSER")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def browsing(*arguments: str) -> Iterator[Any]:
    """A browser with arguments of its own; without one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and FGZOO_BROWSER names none")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox refuses to run as root; the page is ours.
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", *arguments])
        yield running
        running.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as running:
        yield running


class Reader:
    """One window, and what went wrong in it."""

    def __init__(self, browser: Any, width: int = 1200, height: int = 900, **how: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **how)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.trouble.append(f"request of {url}")

    def open(self, path: Path, drawn: bool = True) -> Any:
        self.page.goto(path.as_uri())
        if drawn:
            self.wait("document.querySelector('.viewer canvas')?.dataset.drawn !== undefined")
        return self.page

    def wait(self, condition: str, first: str = "") -> None:
        """Wait until an expression holds; the driver's own way evaluates text, which the page's policy forbids."""
        end = time.monotonic() + 30
        while not self.page.evaluate(f"() => {{ {first}; return {condition}; }}"):
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.05)

    def is_wider_than(self, width: int) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth") > width)


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    """A window on a desk; nothing may go wrong in it."""
    found = Reader(browser)
    yield found
    found.context.close()
    assert found.trouble == []
