"""A browser and a server of the demo pair for the playground's tests.

They are skipped by name where the `playwright` package or a browser is missing; `make browser-test`
installs both. A browser is looked for in OUTDRAFT_BROWSER, among playwright's own, and on the PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.watched_page import Watched, watched
from tests.conftest import DemoPair
from tests.server_process import RunningServer, running_server

PATH_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def server(
    demo_pair: DemoPair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """The demo pair behind `outdraft serve`, as it is by default."""
    words = [str(demo_pair.target), "--draft", str(demo_pair.draft), "--threads", "1"]
    words += ["--kv-cache-memory", "128MiB", "--served-model-name", "demo"]
    with running_server(words, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window; one for each file, for it holds the thread's event loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        browser = launch(started)
        if browser is None:
            pytest.skip("needs a browser: name one in OUTDRAFT_BROWSER, or `make browser-test`")
        yield browser
        browser.close()


def launch(playwright: Any) -> Any:
    """Start a browser; None = there is none."""
    found = _find_browser(Path(playwright.chromium.executable_path))
    if found is None:
        return None
    # Its sandbox does not run as root, which containers often are.
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=found, args=words)


def _find_browser(own: Path) -> str | None:
    named = os.environ.get("OUTDRAFT_BROWSER")
    if named:
        return named
    if own.is_file():
        return str(own)
    return next((found for name in PATH_NAMES if (found := shutil.which(name))), None)


@pytest.fixture
def at(browser: Any, server: RunningServer) -> Iterator[Watched]:
    """The page on a laptop; the test fails where its console, policy or network complains."""
    with watched(browser, server.url) as page:
        yield page


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that goes nowhere by itself; what its console complains about fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert [text for text in complaints if "Failed to load resource" not in text] == []
